"""Labels of which several can hold of a row -> 0 or 1 for each output of the model.

A row's label is a list of names (`["joy", "love"]`), of numbers of outputs, or one 0 or 1 for each output (where every
row has as many as the model has outputs, and one row at least has a list that could be nothing else). Text with `|`
between names is such a list; for a model that gives several labels text with commas is one, too, unless `|` stands
anywhere in the column: a name can hold commas then.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from niwaki.data.labels import ids_of_lists, label_text, lists_map
from niwaki.data.table import Table
from niwaki.errors import RequestError


def labels_that_hold(frame: pd.DataFrame, columns: tuple[str, ...], shown: str) -> list[list[str]]:
    """Of every row the names of those of these columns that hold 1.

    Raises:
        RequestError: a value that is neither 0 nor 1 (nor false or true).
    """
    held: list[list[str]] = [[] for _ in range(len(frame))]
    for column in columns:
        for number, value in enumerate(frame[column].tolist()):
            text = label_text(value).lower()
            if text not in ("0", "1", "0.0", "1.0", "false", "true"):
                rule = f"label_column: {column!r} of {shown!r} must hold 0 or 1 in every row"
                raise RequestError(f"{rule}, got {value!r} in row {number + 1}")
            if text in ("1", "1.0", "true"):
                held[number].append(column)
    return held


def several_names(table: Table) -> list[str]:
    """The names of a new head: those of the data set in its order, or the distinct labels, sorted.

    Raises:
        RequestError: fewer than two, or a table that has 0 and 1 in place of names.
    """
    if table.classes is not None:
        return list(table.classes)
    rows = _lists(table)
    names = sorted({name for row in rows for name in row})
    if set(names) <= {"0", "1"} and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
        count = len(rows[0])
        return [f"LABEL_{index}" for index in range(count)]
    if len(names) < 2:
        raise RequestError(
            f"train_data must have at least two labels to fine-tune on, got {', '.join(names) or 'none'}"
        )
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def several_ids(table: Table, label_ids: dict[str, int]) -> list[list[float]]:
    """For every row 1.0 for each output whose label holds, else 0.0.

    Raises:
        RequestError: a label that the model does not have, naming it; columns of 0 and 1 for some outputs only.
    """
    rows, count = _lists(table), len(label_ids)
    given = {name for row in rows for name in row}
    if _are_places(rows, count):
        return [[float(value) for value in row] for row in rows]
    ids = ids_of_lists(given, label_ids, "labels", table.path)
    named = tuple(name.strip() for name in (table.label_column or "").split(","))
    if named == table.classes and (lacking := sorted(set(label_ids) - set(table.classes or ()))):
        rule = "label_column must name a column of 0 and 1 for each of the model's outputs"
        raise RequestError(f"{rule}, got {table.label_column} without {', '.join(lacking)} in {table.path!r}")
    found = []
    for row in rows:
        held = {ids[name] for name in row}
        found.append([float(index in held) for index in range(count)])
    return found


def several_map(table: Table, label_ids: dict[str, int]) -> str:
    """What became of each label, for a person, see `niwaki.data.labels.label_map`."""
    rows = _lists(table)
    if _are_places(rows, len(label_ids)):
        return "in the order of the model's outputs"
    given = {name for row in rows for name in row}
    return lists_map(given, ids_of_lists(given, label_ids, "labels", table.path), label_ids)


def _are_places(rows: list[list[str]], count: int) -> bool:
    """Whether every row has one 0 or 1 for each of `count` outputs."""
    return count > 1 and all(len(row) == count and set(row) <= {"0", "1"} for row in rows)


def _lists(table: Table) -> list[list[str]]:
    labels = table.labels or []
    mark = "|" if any(isinstance(label, str) and "|" in label for label in labels) else ","
    return [[label_text(name) for name in _listed(label, mark)] for label in labels]


def _listed(label: Any, mark: str) -> list[Any]:
    if isinstance(label, list):
        return label
    if isinstance(label, str):
        return [name for name in (part.strip() for part in label.split(mark)) if name]
    return [label]
