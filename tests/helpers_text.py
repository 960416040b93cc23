"""Tokenizers built in memory, no network, no files: WordPiece over a few words, letters for a language model."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "good", "bad", "film", "plot", "is", "not", "the", "very", "dull", "bright", "##s", ".")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """`[CLS] first [SEP] second [SEP]`, lower case, padding id 0."""
    ids = {token: index for index, token in enumerate((*MARKS, *WORDS))}
    made = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    made.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))  # type: ignore
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), MARKS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **names)


def letter_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """Letters with the space before them, as Llama has it, and two pairs merged; `<s>` first where `bos`, no end."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    ids = {token: i for i, token in enumerate(("<unk>", "<s>", "</s>", "\u2581", *letters, "\u2581a", "th"))}
    made = Tokenizer(models.BPE(vocab=ids, merges=[("\u2581", "a"), ("t", "h")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
