"""Raw labels of a table -> what the model's outputs are numbered by."""

from __future__ import annotations

import math
from typing import Any

from niwaki.data.tables import (
    Table,
)
from niwaki.errors import RequestError


def predicts_numbers(table: Table) -> bool:
    """Whether the labels are numbers to predict: floats that are not all whole, or any numbers in a column `score`."""
    labels = table.labels or []
    if not labels or not all(isinstance(label, int | float) for label in labels):
        return False
    return table.label_column == "score" or any(not float(label).is_integer() for label in labels)


def label_names(table: Table) -> list[str]:
    """The distinct labels, as text, sorted (whole numbers by value)."""
    names = {_label_name(label) for label in table.labels or []}
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)


def _label_name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def label_map(table: Table, rows: list[dict[str, Any]], label_ids: dict[str, int]) -> str:
    """What became of each label, for a person: its name, and the model's name for it where that is another."""
    names = {index: name for name, index in label_ids.items()}
    found = {(row["labels"], _label_name(label)) for label, row in zip(table.labels or [], rows, strict=True)}
    return ", ".join(label if label == names.get(i) else f"{label} is {names.get(i, i)}" for i, label in sorted(found))


def _number(label: Any) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"labels must be finite numbers for a model with one output, got {label!r}")
    return number


def _label_id(label: Any, known: dict[str, int], label_ids: dict[str, int] | None, path: str) -> int:
    name = _label_name(label)
    if name in known or name.lower() in known:
        return known[name] if name in known else known[name.lower()]
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = -1.0
    count = math.inf if label_ids is None else len(label_ids)
    if number.is_integer() and 0 <= number < count:
        return int(number)
    if label_ids is None:
        rule = "labels must be whole numbers from 0 where the model names no labels"
        raise RequestError(f"{rule}, got {label!r} in {path!r}")
    names = ", ".join(label_ids)
    rule = f"labels must be among the model's {names} (or 0 to {len(label_ids) - 1})"
    raise RequestError(f"{rule}, got {label!r} in {path!r}")
