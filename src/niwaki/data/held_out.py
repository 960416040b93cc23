"""Rows that are held out, and those that are left: no text is in both."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from niwaki.data.batches import SOURCE

Row = dict[str, Any]


def apart(
    rows: list[Row], count: int, seed: int, seen: Callable[[Row], bool] = lambda row: False
) -> tuple[list[Row], list[Row]]:
    """`rows` without those that are held out, and these, at most `count` of them; both in the order of `rows`.

    What is drawn, by the `seed`, are texts, whole: a context with all its questions, all pieces of a long sentence, a
    stretch of running text whose windows overlap. A window that is partly in such a stretch is in neither. Texts of
    which a row was `seen` before are drawn when there are no others.
    """
    spans = [row.get(SOURCE, (index, index)) for index, row in enumerate(rows)]
    whole: dict[int, int] = {}
    for first, last in spans:
        whole[first] = whole.get(first, 0) + (first == last)
    known = {text for row, span in zip(rows, spans, strict=True) if seen(row) for text in span}
    held, room = set[int](), count
    for text in sorted(random.Random(seed).sample(sorted(whole), len(whole)), key=known.__contains__):
        if 0 < whole[text] <= room:
            held.add(text)
            room -= whole[text]
    left = [row for row, span in zip(rows, spans, strict=True) if not held.intersection(span)]
    return left, [row for row, span in zip(rows, spans, strict=True) if span[0] == span[1] and span[0] in held]
