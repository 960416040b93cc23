"""A small tokenizer of every kind, trained in memory on words of a made-up language: no network, no files."""

from __future__ import annotations

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_DRAW = random.Random(0)
_WORDS = ["".join(_DRAW.choices("abcdefghij", k=_DRAW.randint(1, 7))) for _ in range(150)]


def sentences(count: int, seed: int = 1) -> list[str]:
    """Sentences of the language, with marks and a few letters that are rare."""
    draw = random.Random(seed)
    return [
        " ".join([*draw.choices(_WORDS, k=draw.randint(2, 9)), draw.choice([".", "!", "é", "日"])])
        for _ in range(count)
    ]


def _trained(tokenizer: Tokenizer, trainer) -> Tokenizer:
    tokenizer.train_from_iterator(sentences(300, seed=0), trainer)
    return tokenizer


def byte_level(**options) -> Tokenizer:
    """As GPT-2's."""
    made = Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    made = _trained(made, trainer)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
            ),
        ]
    )
    return made


def byte_level_of_llama_3(**options) -> Tokenizer:
    """As `byte_level`, but that text is split as Llama 3's is: by three digits, with what stands before a word."""
    made = byte_level(**options)
    rule = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    split = pre_tokenizers.Split(Regex(rf"{rule}|\s+(?!\S)|\s+"), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    return made


def whole_words_first() -> Tokenizer:
    """As Llama 3's: a word that is a token is taken whole, also where no merges lead to it."""
    plain = json.loads(byte_level_of_llama_3().to_str())
    plain["model"]["ignore_merges"] = True
    gone = set(map(tuple, plain["model"]["merges"][40:80]))
    plain["model"]["merges"] = [pair for pair in plain["model"]["merges"] if tuple(pair) not in gone]
    return Tokenizer.from_str(json.dumps(plain))


def byte_fallback() -> Tokenizer:
    """As Llama 2's: every way to put a token together is a merge, the order is that of the tokens."""
    made = _spaces(Tokenizer(models.BPE(unk_token="<unk>")))
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    plain = json.loads(_trained(made, trainer).to_str())
    tokens = list(plain["model"]["vocab"])
    ids = {token: index for index, token in enumerate([*tokens[:3], *BYTES, *tokens[3:]])}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens[3:]
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    model = models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    made = _spaces(Tokenizer(model))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _spaces(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def word_ends() -> Tokenizer:
    """As CLIP's: the last piece of a word carries a mark."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder("</w>")
    special = ["<unk>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(made, trainer)


def word_insides() -> Tokenizer:
    """BPE whose pieces inside a word carry a mark."""
    made = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], continuing_subword_prefix="##", show_progress=False
    )
    return _trained(made, trainer)


def unigram(byte_fallback: bool = False) -> Tokenizer:
    """As T5's and XLM-RoBERTa's."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    made = _trained(made, trainer)
    if byte_fallback:
        plain = json.loads(made.to_str())
        plain["model"]["byte_fallback"] = True
        plain["model"]["vocab"] += [[token, -20.0] for token in BYTES]
        made = Tokenizer.from_str(json.dumps(plain))
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def word_piece() -> Tokenizer:
    """As BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = _trained(made, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(pad_id=0, pad_token="[PAD]")
    return made


def word_level() -> Tokenizer:
    """Whole words."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]"]
    return _trained(made, trainers.WordLevelTrainer(vocab_size=400, special_tokens=special, show_progress=False))


KINDS = {
    "byte-level": byte_level,
    "whole words first": whole_words_first,
    "byte fallback": byte_fallback,
    "word ends": word_ends,
    "word insides": word_insides,
    "unigram": unigram,
    "unigram, bytes": lambda: unigram(byte_fallback=True),
    "word piece": word_piece,
    "word level": word_level,
}
_NAMES = {"<s>": "bos_token", "</s>": "eos_token", "<pad>": "pad_token", "[PAD]": "pad_token"}
_NAMES |= {"<unk>": "unk_token", "[UNK]": "unk_token", "[CLS]": "cls_token", "[SEP]": "sep_token"}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A Transformers tokenizer of a kind, with two tokens added at the end: one special, one not."""
    made = KINDS[kind]()
    names = {name: token for token, name in _NAMES.items() if made.token_to_id(token) is not None}
    found = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    found.add_tokens(["<plain>"])
    found.add_special_tokens({"additional_special_tokens": ["<special>"]})
    return found
