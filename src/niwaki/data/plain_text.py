"""What a table holds as text: bytes are UTF-8, dates as they are written, and all of it can be written again.

Bytes that are no UTF-8 and half surrogate pairs (JSON has them where an emoji was cut in two) are refused where a table
needs them, never replaced: the offsets of answers and the names of labels would change without a word.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from niwaki.config.text import unwritable
from niwaki.data.table import Table, as_list, is_several
from niwaki.errors import RequestError

_DATES = (datetime.date, datetime.time, datetime.timedelta, pd.Period)


def as_text_(frame: pd.DataFrame) -> None:
    """Put text in the place of bytes and dates, in place and also inside lists.

    Bytes that are no UTF-8 become halves of surrogate pairs, which `check_text` finds where the table needs them.
    """
    for place in range(frame.shape[1]):
        column = frame.iloc[:, place]
        if column.dtype.kind not in "biufc" and not isinstance(column.dtype, pd.StringDtype):
            texts = [_as_text(value) for value in column.tolist()]
            frame.isetitem(place, pd.Series(texts, frame.index, object))


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        return {key: _as_text(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":  # its own `tolist` would give numbers
        value = pd.Series(value).tolist()
    if is_several(value):
        return [_as_text(inner) for inner in as_list(value)]
    return str(value) if isinstance(value, _DATES) and value is not pd.NaT else value


def check_text(table: Table, parameter: str) -> None:
    """Refuse a table with text that cannot be written.

    Raises:
        RequestError: about `parameter`, naming the column and the row.
    """
    for name in (*table.columns, *(table.classes or ())):
        if odd := unwritable(name):
            rule = f"{parameter} must have names of columns and classes in UTF-8"
            raise RequestError(f"{rule}, got {odd!r} in {table.path!r}")
    for column, number, text in _texts_of(table):
        if odd := unwritable(text):
            rule = f"{parameter} must hold text in UTF-8"
            raise RequestError(f"{rule}, got {odd!r} in row {number} of {column!r} in {table.path!r}")


def _texts_of(table: Table) -> Iterator[tuple[str | None, int, str]]:
    """All texts of a table, with the column and the row of each."""
    last = len(table.text_columns) - 1
    for number, row in enumerate(table.texts, 1):
        for place, text in enumerate(row):
            yield table.text_columns[min(place, last)], number, text
    for number, label in enumerate(table.labels or (), 1):
        for text in _texts_in(label):
            yield table.label_column, number, text
    for number, name in enumerate(table.ids or (), 1):
        yield "id", number, name


def _texts_in(label: Any) -> Iterator[str]:
    if isinstance(label, str):
        yield label
    elif is_several(label):
        for inner in label.values() if isinstance(label, dict) else as_list(label):
            yield from _texts_in(inner)
