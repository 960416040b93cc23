"""Texts for a sentence encoder: every text is a row of its own; of pairs it says what it is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from niwaki.data.batches import ANSWER
from niwaki.data.labels import to_number
from niwaki.data.rows import tokenised
from niwaki.data.table import Table
from niwaki.errors import RequestError

QUERIES = ("query", "anchor", "question")
DOCUMENTS = ("positive", "document", "passage", "answer")
SEARCHES = tuple((query, document) for query in QUERIES for document in DOCUMENTS)
"""Pairs of columns whose second text is what a search for the first is to find."""


@dataclass(frozen=True)
class OfPair:
    """Of one row: the number of its pair, whether it is the first or second text (0 or 1), the text; the score of the
    pair, None where the second is what a search for the first is to find."""

    pair: int
    side: int
    text: str
    score: float | None


def is_search(table: Table) -> bool:
    """Whether the table holds queries and what each is to find."""
    return tuple(column.lower() for column in table.text_columns) in SEARCHES and table.labels is None


def texts_as_read(table: Table, as_read: Callable[[str, str | None], str]) -> list[str]:
    """All texts, row by row, as `as_read(text, role)` gives them to the model."""
    roles = ("query", "document") if is_search(table) else (None,) * len(table.text_columns)
    return [as_read(text, role) for row in table.texts for text, role in zip(row, roles, strict=True)]


def encode_sentences(
    table: Table, tokenizer: Any, max_length: int, as_read: Callable[[str, str | None], str], *, measured: bool
) -> list[dict[str, Any]]:
    """Tokenise every text alone, cut at `max_length` tokens, as `as_read(text, role)` gives it to the model.

    With `measured`, pairs carry under `ANSWER` what they are measured by.

    Raises:
        RequestError: pairs to be measured that have no score and are no queries; a score that is no number; a text
            without a token.
    """
    search, pairs = is_search(table), len(table.text_columns) == 2
    if measured and pairs and not search and table.labels is None:
        rule = "eval_data of pairs must have a score (--label-column), or be queries and what they are to find (columns"
        raise RequestError(f"{rule} query and positive), got {table.seen()} in {table.path!r}")
    rows = tokenised(table, tokenizer, max_length, texts_as_read(table, as_read))
    if measured and pairs:
        for index, row in enumerate(rows):
            pair, side = divmod(index, 2)
            score = None if search else to_number((table.labels or [])[pair])
            row[ANSWER] = OfPair(pair, side, table.texts[pair][side], score)
    return rows
