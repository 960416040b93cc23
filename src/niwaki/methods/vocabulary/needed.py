"""Which tokens stay, so that the text of a corpus is cut into the same pieces as before and any text can be cut.

A smaller vocabulary offers a tokenizer a part of the choices it had. Where all that it chose is still on offer, it
chooses the same (by kind of model, as the `tokenizers` library has them):

- BPE (Sennrich et al., ACL 2016) makes the merge of lowest rank, again and again. Merges inside what becomes one
  token do not depend on its neighbours, so a token needs the tokens that are passed through when it is put together
  alone; merges whose two parts and result stay are kept in their order.
- Unigram (Kudo, ACL 2018) takes the path of highest score; what is not known costs more than the lowest score of all,
  so a piece of that score stays too.
- WordPiece takes the longest piece that fits, from left to right; WordLevel whole words.

What text of other words needs is an alphabet: bytes where the model falls back to them or works on them; all tokens of
one character, which a model knows better than bytes, and the tokens that these cannot spell. WordLevel has none: other
words are unknown to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

Model = dict[str, Any]
"""The part `model` of a `tokenizer.json`."""

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
SPACE = "▁"
"""What SentencePiece writes for a space: as bytes it would not be read back as one."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def entries_of(model: Model) -> list[tuple[str, int]]:
    """Tokens of a model with their ids, in the order of these."""
    vocabulary = model["vocab"]
    if model["type"] == "Unigram":
        return [(token, index) for index, (token, _) in enumerate(vocabulary)]
    return sorted(vocabulary.items(), key=lambda entry: entry[1])


def alphabet(description: dict[str, Any], characters: set[str] | None = None) -> set[int]:
    """Ids of the tokens that text is spelled with where no other fits: of these characters alone if any are given."""
    model = description["model"]
    entries = entries_of(model)
    ids = dict(entries)
    found = {ids[token] for token in (model.get("unk_token"), *BYTES) if token in ids}
    if model["type"] == "WordLevel":
        return found
    if model["type"] == "Unigram":
        found |= {model["unk_id"]} - {None}
        found.add(min(range(len(entries)), key=lambda index: model["vocab"][index][1]))
    only = None if characters is None or _is_of_bytes(description) else {*characters, SPACE}
    for token, index in entries:
        letters = letters_of(token, model)
        if len(letters) == 1:
            chosen = only is None or _text_of(token, model) in only
        else:
            chosen = only is None and model["type"] != "BPE" and not all(letter in ids for letter in letters)
        if chosen:
            found.add(index)
    return found


def characters_of(model: Model, ids: set[int]) -> set[str]:
    """The characters that tokens are made of, without the marks of a word's inside and end."""
    return set().union(*(_text_of(token, model) for token, index in entries_of(model) if index in ids))


def _is_of_bytes(description: dict[str, Any]) -> bool:
    """Whether the characters that the model sees are bytes: there are 256, and any may be needed."""
    steps = [description["normalizer"], description["pre_tokenizer"]]
    while steps:
        step = steps.pop() or {}
        if step.get("type") == "ByteLevel":
            return True
        steps += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
    return False


def letters_of(token: str, model: Model) -> list[str]:
    """A token cut into the tokens of one character that it is made of: with the marks of a word's inside and end."""
    prefix, suffix = _marks_of(token, model)
    always = model.get("continuing_subword_prefix") or ""
    letters = [f"{always if place else prefix}{letter}" for place, letter in enumerate(_text_of(token, model))]
    return [*letters[:-1], f"{letters[-1]}{suffix}"] if letters else []


def _text_of(token: str, model: Model) -> str:
    prefix, suffix = _marks_of(token, model)
    return token[len(prefix) : len(token) - len(suffix)]


def _marks_of(token: str, model: Model) -> tuple[str, str]:
    """The mark of a word's inside that a token begins with, and that of its end; empty where it has none."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    inside = token.startswith(prefix) and token != prefix
    ends = token.endswith(suffix) and token != suffix
    return prefix if inside else "", suffix if ends else ""


class Parts:
    """What a token needs beside itself: in BPE the tokens that are passed through when it is put together."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.ids = dict(entries_of(model))
        self.tokens = {index: token for token, index in self.ids.items()}
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(model.get("merges", ()))}
        self.skipped = len(model.get("continuing_subword_prefix") or "")

    def of(self, index: int) -> set[int]:
        """Ids of the parts of a token, itself among them; alone where no merges lead to it."""
        token = self.tokens.get(index)
        if not self.ranks or token is None:
            return {index}
        pieces = letters_of(token, self.model)
        passed = set(pieces)
        while len(pieces) > 1:
            pairs = [self.ranks.get(pair, len(self.ranks)) for pair in pairwise(pieces)]
            place = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[place] == len(self.ranks):
                return {index}
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1][self.skipped :]]
            passed.add(pieces[place])
        return {self.ids[piece] for piece in passed if piece in self.ids} | {index}


def with_parts(parts: Parts, ids: Iterable[int]) -> set[int]:
    """Tokens and all that they need."""
    return set().union(*(parts.of(index) for index in ids))


def most_used(parts: Parts, kept: set[int], used: Iterable[int], size: int) -> set[int]:
    """`kept` and, in the order of `used`, the tokens that still fit in with their parts until there are `size`."""
    found = set(kept)
    for index in used:
        if len(found) == size:
            break
        more = parts.of(index) - found
        if len(found) + len(more) <= size:
            found |= more
    return found
