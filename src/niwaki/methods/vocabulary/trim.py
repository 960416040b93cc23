"""Model and tokenizer become smaller together: the tokens that a corpus needs stay, with their embeddings.

Half of a small model can be embeddings of tokens that its task never sees (Abdaoui et al., SustaiNLP 2020, who trimmed
multilingual BERT). The text of the corpus is cut into the same pieces as before and a classifier gives the same
logits; a language model has fewer tokens to share its probability among, so its perplexity there can only fall.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from torch import nn

from niwaki.adapters import check_model
from niwaki.anatomy import pooling_of
from niwaki.checkpoint import SentenceHead, as_loaded, is_written_as_
from niwaki.config import Vocabulary
from niwaki.config.text import check_utf8
from niwaki.errors import RequestError
from niwaki.methods.vocabulary.needed import Parts, alphabet, characters_of, entries_of, most_used, with_parts
from niwaki.methods.vocabulary.rows import embeddings_of, keep_rows_, named_rows
from niwaki.methods.vocabulary.tokenizer import description_of, named_ids, order_of, trimmed
from niwaki.results import StageResult

_TEXTS_AT_ONCE = 1000
Text = str | Sequence[str]
"""A text as it stands, or in words."""


@dataclass(frozen=True)
class Retokenised:
    """What a trimmed tokenizer makes of texts.

    `changed` of the `texts` are cut into other pieces than before: of the tokens `before`, `gone` are not there any
    more, and `after` is how many it takes now.
    """

    texts: int
    changed: int
    before: int
    after: int
    gone: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `result.json`."""
        tokens = {"tokens_before": self.before, "tokens_after": self.after, "tokens_gone": self.gone}
        return {"texts": self.texts, "texts_changed": self.changed, **tokens}


def trim_vocabulary_(
    model: nn.Module, tokenizer: Any, texts: str | Iterable[Text], config: Vocabulary | None = None
) -> tuple[Any, StageResult]:
    """Trim `model` in place to the tokens that `texts` need; returns its new tokenizer and what was done.

    A text that is a list is one of words, each of which is cut alone, as a tagger reads them.

    This is no kind of `prune_`: texts decide, not batches, and the model is of no use without the tokenizer that comes
    back. The one that was given is left as it was.

    Raises:
        RequestError: a model or an adapter that is not supported, a tokenizer that is another model's or cannot be
            rewritten, a size below what any text needs, texts that are no UTF-8; before the model is changed.
    """
    started = time.perf_counter()
    asked = config or Vocabulary()
    check_model(model)
    rows, description = embeddings_of(model)[0].num_embeddings, description_of(tokenizer)
    fixed = named_rows(model) | _of_prompts(model, tokenizer) | _of_chats(tokenizer)
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        for part in [text] if isinstance(text, str) else text:
            check_utf8("texts", part)
    corpus = _tokenised(tokenizer, texts)
    tokens = {*tokenizer.get_vocab().values(), *(index for _, index in entries_of(description["model"]))}
    kept = _kept(tokenizer, description, tokens, fixed, corpus, asked)
    if (highest := max(kept)) >= rows:
        raise RequestError(f"tokenizer must be the model's own, with ids below {rows}, got id {highest}")
    bare = sum(row not in tokens and row not in fixed for row in range(rows))
    warnings, new = [], tokenizer
    if len(kept) == len(tokens):
        warnings.append(f"vocabulary: the data need all {len(tokens)} tokens, none could go")
    if bare:
        warnings.append(f"vocabulary: {bare} of the {rows} rows of the embeddings had no token and are gone")
    if bare or len(kept) < len(tokens):
        order = order_of(description, kept)
        new, loaded = trimmed(tokenizer, description, order), as_loaded(tokenizer)
        if loaded is not tokenizer:
            is_written_as_(new, trimmed(loaded, description_of(loaded), order))
        found = _compared(tokenizer, new, texts, corpus)
        # A config may name a row that no token has: it comes after those that one has.
        keep_rows_(model, order + sorted(fixed - kept))
    else:
        found = Retokenised(len(corpus), 0, _total(corpus), _total(corpus), 0)
    achieved = len(kept) / len(tokens)
    return new, StageResult(
        name="vocabulary",
        kind="tokens",
        requested=achieved if asked.size is None else min(1.0, asked.size / len(tokens)),
        achieved=achieved,
        seconds=time.perf_counter() - started,
        forward_passes=0.0,
        backward_passes=0.0,
        layers=(),
        warnings=tuple(warnings),
        details={"kept": len(kept), "total": len(tokens), "rows_without_token": bare, "train": found.to_dict()},
    )


def _of_prompts(model: nn.Module, tokenizer: Any) -> set[int]:
    """Ids of the prompts that a sentence encoder puts before texts, whichever of them the corpus has."""
    head = pooling_of(model)
    if not isinstance(head, SentenceHead):
        return set()
    texts = [text.lower() if head.lower else text for text in head.prompts.values() if text]
    return set().union(*(tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts))


_CHATS = (("system",), ("user",), ("system", "user", "assistant"), ("user", "assistant"))


def _of_chats(tokenizer: Any) -> set[int]:
    """Ids of what the chat template puts around messages: an instruct model is to see the headers that it knows."""
    templates = tokenizer.chat_template
    found = set[int]()
    for name in templates if isinstance(templates, dict) else [None] if templates else []:
        for roles, ask in itertools.product(_CHATS, (False, True)):
            chat = [{"role": role, "content": "a"} for role in roles]
            with suppress(TemplateError, TypeError, ValueError):  # some take no system message, or not two of a kind
                text = tokenizer.apply_chat_template(
                    chat, chat_template=name, tokenize=False, add_generation_prompt=ask
                )
                found.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def check_trimmable(model: nn.Module, tokenizer: Any) -> None:
    """Refuse, before any work, a model or a tokenizer that cannot be trimmed.

    Raises:
        RequestError: an adapter on the embeddings, a tokenizer that cannot be rewritten.
    """
    named_rows(model)
    named_ids(description_of(tokenizer))


def retokenised(old: Any, new: Any, texts: Iterable[Text]) -> Retokenised:
    """What the trimmed tokenizer `new` makes of texts that `old` has cut before.

    Raises:
        RequestError: a text is cut otherwise although all its tokens are still there.
    """
    texts = list(texts)
    return _compared(old, new, texts, _tokenised(old, texts))


def _kept(
    tokenizer: Any,
    description: dict[str, Any],
    tokens: set[int],
    fixed: set[int],
    corpus: list[np.ndarray],
    asked: Vocabulary,
) -> set[int]:
    """The tokens that stay: what any text needs, and what the corpus uses."""
    parts = Parts(description["model"])
    named = named_ids(description) | set(tokenizer.all_special_ids) | fixed
    counts = np.bincount(np.concatenate(corpus))
    used = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] >= asked.min_count]
    characters = characters_of(description["model"], set(used)) if asked.characters == "used" else None
    always = with_parts(parts, (named | alphabet(description, characters)) & tokens)
    if asked.size is None:
        return always | with_parts(parts, used)
    if len(always) > asked.size:
        rule = f"size must be at least {len(always)}, the special tokens and those that any text needs"
        raise RequestError(f"{rule}, got {asked.size}")
    return most_used(parts, always, used, asked.size)


def _tokenised(tokenizer: Any, texts: Sequence[Text]) -> list[np.ndarray]:
    """The ids of every text, without special tokens."""
    found = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        for in_words, of_kind in itertools.groupby(some, lambda text: not isinstance(text, str)):
            asked = {"is_split_into_words": in_words, "add_special_tokens": False, "verbose": False}
            found += [np.asarray(ids, dtype=np.int64) for ids in tokenizer(list(of_kind), **asked)["input_ids"]]
    if not _total(found):
        raise RequestError(f"texts must hold at least one token, got none in {len(texts)} texts")
    return found


def _compared(old: Any, new: Any, texts: Sequence[Text], before: list[np.ndarray]) -> Retokenised:
    names, vocabulary = old.get_vocab(), new.get_vocab()
    numbers = np.full(max(names.values()) + 1, -1)
    for token, index in names.items():
        numbers[index] = vocabulary.get(token, -1)
    after, changed, gone = _tokenised(new, texts), 0, 0
    for text, ids, found in zip(texts, before, after, strict=True):
        expected = numbers[ids]
        lost = int((expected < 0).sum())
        if not np.array_equal(expected, found):
            changed += 1
            if not lost:
                rule = f"tokenizer must cut text as before for its vocabulary to be trimmed, got {str(text)[:40]!r} cut"
                raise RequestError(f"{rule} otherwise by {type(new).__name__}")
        gone += lost
    return Retokenised(len(texts), changed, _total(before), _total(after), gone)


def _total(corpus: list[np.ndarray]) -> int:
    return sum(map(len, corpus))
