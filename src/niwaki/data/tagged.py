"""Words with a tag each -> tokenised rows.

The rule of subwords: the tag of a word is that of its first piece, its other pieces have no label. A row that is longer
than the model takes is cut into several, and every word is labelled once, wherever its first piece falls. Words that
the tokenizer makes nothing of cannot be tagged; how many there are is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from niwaki.data.batches import ANSWER, SOURCE, UNLABELLED
from niwaki.data.conll import ENTITY
from niwaki.data.labels import ids_of_lists, label_text, lists_map
from niwaki.data.rows import check_room
from niwaki.data.table import Table
from niwaki.errors import RequestError


@dataclass
class TaggedRows:
    """Tokenised rows, with what of the words did not come along."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tags: str = ""
    """What became of the tags."""
    cut: int = 0
    """Rows of the table that were cut into several."""
    empty: int = 0
    """Rows of the table without a word."""
    lost: int = 0
    """Words that the tokenizer makes nothing of."""

    def __str__(self) -> str:
        said = [
            f"tags {self.tags}" if self.tags else "",
            f"{self.cut} rows are longer than max_length and cut into several" if self.cut else "",
            f"{self.empty} rows have no words" if self.empty else "",
            f"{self.lost} words have no tokens, so no tag" if self.lost else "",
        ]
        return "; ".join(part for part in said if part)


def of_entities(names: Iterable[str]) -> bool:
    """Whether these tags are of entities, BIO or IOBES; tags of another kind (parts of speech) are of words alone."""
    named = [name for name in names if name != "O"]
    return bool(named) and all(ENTITY.fullmatch(name) for name in named)


def looks_tagged(table: Table) -> bool:
    """Whether most texts end in a tag of entities: lines of CoNLL in a file of another name."""
    last = [words[-1] for (*_, text) in table.texts if len(words := text.split()) > 1]
    return 2 * sum(word == "O" or bool(ENTITY.fullmatch(word)) for word in last) > table.rows


def tag_names(table: Table) -> list[str]:
    """The names of a new head: those of the data set in its order, or the distinct tags; `O` first, then by kind.

    Raises:
        RequestError: some tags are of entities and others are not, fewer than two tags.
    """
    if table.classes is not None:
        return list(table.classes)
    found = sorted({label_text(tag) for tags in table.labels or [] for tag in tags})
    entities = [name for name in found if ENTITY.fullmatch(name)]
    odd = [name for name in found if name not in entities and name != "O"]
    if odd and any(name.startswith("B-") for name in entities):
        rule = f"tags must all be BIO or IOBES where some are ({entities[0]})"
        raise RequestError(f"{rule}, got {odd[0]!r} in {table.path!r}")
    if len(found) < 2:
        raise RequestError(f"train_data must have at least two tags to fine-tune on, got {', '.join(found) or 'none'}")
    if all(name.isdecimal() for name in found):
        return sorted(found, key=int)
    return sorted(found, key=lambda name: (name != "O", name.partition("-")[2] or name, name))


def encode_tagged(table: Table, tokenizer: Any, max_length: int, label_ids: dict[str, int]) -> TaggedRows:
    """Tokenise the words of every row; `labels` has the id of a word's tag at its first piece, -100 elsewhere.

    Beside them a row carries under `ANSWER` (and `SOURCE`) the number of the row of the table that it is a part of. Of
    a table with tags rows without a label are left out: there is no loss of such.

    Raises:
        RequestError: a tokenizer that does not say which pieces are a word's; a tag that the model does not have; no
            row with a word. See `check_room`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError("tokenizer must be a fast one (tokenizer.json), which says which tokens are a word's")
    check_room(tokenizer, max_length)
    raw = {label_text(tag) for tags in table.labels or () for tag in tags}
    ids = ids_of_lists(raw, label_ids, "tags", table.path)
    tags = None if table.labels is None else [[ids[label_text(tag)] for tag in tags] for tags in table.labels]
    found = TaggedRows(tags=lists_map(raw, ids, label_ids) if tags else "")
    for number, words in enumerate(table.texts):
        if not words:
            found.empty += 1
            continue
        wanted = None if tags is None else tags[number]
        pieces = tokenizer(
            list(words),
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
        )
        pieces.pop("overflow_to_sample_mapping", None)
        parts = len(pieces["input_ids"])
        found.cut += parts > 1
        seen: set[int] = set()
        for part in range(parts):
            row = {key: values[part] for key, values in pieces.items()} | {SOURCE: (number, number)}
            labels = []
            for word in pieces.word_ids(part):
                if word is None or word in seen:
                    labels.append(UNLABELLED)
                    continue
                seen.add(word)
                labels.append(UNLABELLED if wanted is None else wanted[word])
            if wanted is not None:
                row |= {"labels": labels, ANSWER: number}
            if wanted is None or set(labels) != {UNLABELLED}:  # of the inside of a long word nothing is asked
                found.rows.append(row)
        found.lost += len(words) - len(seen)
    if not found.rows:
        raise RequestError(f"text_columns must hold words, got none in {table.path!r}")
    return found
