"""Questions on contexts -> tokenised rows: a context longer than the model takes is cut into several that overlap.

A row's labels are the places of the first and the last token of the answer; the first place of the row (the token of
the classifier) where the answer is not whole in it, or where there is none. Under `ANSWER` a row carries what its
predictions are turned back into text by, under `SOURCE` which context it is of; no model sees either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from niwaki.data.batches import ANSWER, SOURCE
from niwaki.data.table import Table
from niwaki.errors import RequestError


@dataclass(frozen=True)
class Asked:
    """Of one row: the number of its question, the context, where in it each token stands (None for other tokens), the
    texts of the right answers."""

    number: int
    context: str
    offsets: list[tuple[int, int] | None]
    answers: tuple[str, ...]


def encode_answers(table: Table, tokenizer: Any, max_length: int, stride: int | None) -> list[dict[str, Any]]:
    """Tokenise every question with its context, in windows that start `stride` tokens of the context after each other.

    By default two windows share a third of `max_length`. A table without answers gives rows without labels.

    Raises:
        RequestError: a tokenizer that does not say where tokens stand; a question that leaves no room for its context.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError("tokenizer must be a fast one (tokenizer.json), which says where in a text tokens stand")
    rows, numbers = [], dict[str, int]()
    names = table.ids or range(1, table.rows + 1)
    given: list[Any] = table.labels or [None] * table.rows
    for asked, (name, (question, context), answers) in enumerate(zip(names, table.texts, given, strict=True)):
        room = max_length - len(tokenizer(question, "")["input_ids"])
        shared = max_length // 3 if stride is None else room - stride
        if not 0 <= shared < room:
            rule = (
                "max_length must leave room for a part of the context beside the question"
                if stride is None
                else (f"stride must be 1 to {room} with max_length {max_length} and this question")
            )
            raise RequestError(f"{rule}, got {max_length if stride is None else stride} for question {name!r}")
        found = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=shared,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found.pop("overflow_to_sample_mapping", None)
        places = found.pop("offset_mapping")
        for number, offsets in enumerate(places):
            row = {key: values[number] for key, values in found.items()}
            row[SOURCE] = (numbers.setdefault(context, len(numbers)),) * 2
            if answers is not None:
                inside = found.sequence_ids(number)
                spans = [tuple(span) if part == 1 else None for span, part in zip(offsets, inside, strict=True)]
                row["start_positions"], row["end_positions"] = _tokens(spans, answers[0]) if answers else (0, 0)
                row[ANSWER] = Asked(asked, context, spans, tuple(answer["text"] for answer in answers))
            rows.append(row)
    return rows


def _tokens(spans: list[Any], answer: dict[str, Any]) -> tuple[int, int]:
    """First and last token of an answer; the first place twice where a row does not hold it whole."""
    start, end = answer["start"], answer["start"] + len(answer["text"])
    inside = [place for place, span in enumerate(spans) if span is not None and span[0] < span[1]]
    if not inside or spans[inside[0]][0] > start or spans[inside[-1]][1] < end:
        return 0, 0
    first = next(place for place in inside if spans[place][1] > start)
    last = next(place for place in reversed(inside) if spans[place][0] < end)
    return (first, last) if first <= last else (0, 0)
