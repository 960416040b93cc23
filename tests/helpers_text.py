"""A WordPiece tokenizer over a few words, built in memory: no network, no files."""

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
