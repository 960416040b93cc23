"""Raw labels of a table -> what the model's outputs are numbered by.

A column is read in one way, never row by row: as names if every label is a name of the model (its case does not
matter), else as numbers of outputs if every label is one (a whole number, or `LABEL_1`). A column of both, and one that
could be read in both ways to different ends (names `1`, `0`), is refused; so are two labels that would become one
class. Where the model's names say nothing (`LABEL_0`, or `0`), the classes of a data set that names its own stand in
its order, and `false` and `true` for 0 and 1.
"""

from __future__ import annotations

import math
import re
from typing import Any

from niwaki.data.table import Table
from niwaki.errors import RequestError


def predicts_numbers(table: Table) -> bool:
    """Whether the labels are numbers to predict: floats that are not all whole, or any numbers in a column `score`."""
    labels = table.labels or []
    if not labels or not all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels):
        return False
    return (table.label_column or "").lower() == "score" or any(not float(label).is_integer() for label in labels)


_DECIMAL = re.compile(r"[+-]?\d*[.,]\d+")


def check_numbers(table: Table) -> None:
    """Refuse labels of which most are numbers with decimals and some are not: no class is called 0.5.

    Raises:
        RequestError: naming the first one that is no number; one with a decimal comma is none.
    """
    labels = table.labels or []
    if table.classes is not None or all(map(_is_number, labels)):
        return
    like = [bool(_DECIMAL.fullmatch(str(label).strip())) for label in labels]
    of_score = (table.label_column or "").lower() == "score" and any(map(_is_number, labels))
    if 2 * sum(like) > len(labels) or of_score:
        number, odd = next((n, label) for n, label in enumerate(labels, 1) if not _is_number(label))
        rule = f"label_column: {table.label_column!r} of {table.path!r} must hold numbers, with a decimal point"
        raise RequestError(f"{rule}, as most of it does, got {odd!r} in row {number}")


def _is_number(label: Any) -> bool:
    try:
        to_number(label)
    except RequestError:
        return False
    return True


def label_names(table: Table) -> list[str]:
    """The names that a new head's classes get: those of the data set in its order, or the distinct labels, sorted.

    Whole numbers are sorted by value.
    """
    if table.classes is not None:
        return list(table.classes)
    names = {label_text(label) for label in table.labels or []}
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)


def label_text(label: Any) -> str:
    """How a label is written: a whole number without a point, `false` and `true`, text without space around it."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()


def label_map(table: Table, rows: list[dict[str, Any]], label_ids: dict[str, int]) -> str:
    """What became of each label, for a person: its name, and the model's name for it where that is another.

    Classes of the model that no row has come last.
    """
    return _became(
        {(row["labels"], label_text(label)) for label, row in zip(table.labels or [], rows, strict=True)}, label_ids
    )


def lists_map(given: set[str], ids: dict[str, int], label_ids: dict[str, int]) -> str:
    """The same of labels that stand in lists, whose `ids` are those of `ids_of_lists`."""
    return _became({(ids[name], name) for name in given}, label_ids)


def _became(found: set[tuple[int, str]], label_ids: dict[str, int]) -> str:
    names = {index: name for name, index in label_ids.items()}
    said = ", ".join(label if label == names.get(i) else f"{label} is {names.get(i, i)}" for i, label in sorted(found))
    bare = [name for index, name in sorted(names.items()) if index not in {i for i, _ in found}]
    return f"{said}; no row is {', '.join(bare)}" if bare else said


def to_number(label: Any) -> float:
    """A label as a number to predict.

    Raises:
        RequestError: no finite number.
    """
    try:
        number = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"labels must be finite numbers for a model with one output, got {label!r}")
    return number


def say_nothing(names: list[str]) -> bool:
    """Whether the names of a model's outputs are no more than their numbers: `LABEL_0` or `0`, `LABEL_1` or `1`..."""
    return all(name.lower() in (f"label_{index}", str(index)) for index, name in enumerate(names))


def class_ids(table: Table, label_ids: dict[str, int] | None, named: bool = False) -> dict[str, int]:
    """The output of each label of `table`, by its `label_text`; `label_ids` are those of the model's names.

    Without `label_ids` labels are whole numbers from 0. `named`: the user has given the names, so they come first.

    Raises:
        RequestError: as the first lines of this file say; it names the labels and the flag that settles it.
    """
    raw = {label_text(label): label for label in table.labels or []}
    for label in raw.values():
        if isinstance(label, list | dict | tuple) or getattr(label, "shape", ()):  # an array, of a Parquet file
            kind = type(label).__name__
            raise RequestError(f"labels must be one name or number a row, got a {kind} in {table.path!r}")
    if label_ids is None:
        return _distinct(_all_numbers(raw, None, table.path), table.path)
    names = sorted(label_ids, key=lambda name: label_ids[name])
    by_name = _by_name(raw, label_ids)
    by_number = {text: number for text in raw if (number := _number_of(text, len(names))) is not None}
    bare = say_nothing(names) and not named
    if table.classes is not None and bare and len(table.classes) == len(names):
        return {text: table.classes.index(text) for text in raw}
    if len(by_name) == len(raw):
        settled = named or table.classes is not None
        if len(by_number) == len(raw) and by_number != by_name and not settled:
            _refuse_both(raw, names, table.path)
        return _distinct(by_name, table.path)
    if len(by_number) == len(raw) and table.classes is None:
        return _distinct(by_number, table.path)
    if bare and len(names) == 2 and {text.lower() for text in raw} <= {"false", "true"}:
        return _distinct({text: int(text.lower() == "true") for text in raw}, table.path)
    _refuse(raw, by_name, by_number, names, table)
    raise AssertionError("refused above")


def _by_name(raw: dict[str, Any], label_ids: dict[str, int]) -> dict[str, int]:
    """The outputs of those labels that are names: exactly, or else without case where one name alone is meant."""
    lower: dict[str, list[int]] = {}
    for name, index in label_ids.items():
        lower.setdefault(name.lower(), []).append(index)
    found = {}
    for text in raw:
        if text in label_ids:
            found[text] = label_ids[text]
        elif len(meant := lower.get(text.lower(), [])) == 1:
            found[text] = meant[0]
    return found


def _number_of(text: str, count: float) -> int | None:
    """The output that a label names by its number (`1`, `1.0`, `LABEL_1`), if there is one."""
    found = re.fullmatch(r"(?:label_)?(\d+)", text, re.IGNORECASE) or re.fullmatch(r"(\d+)\.0*", text)
    number = int(found[1]) if found else -1
    return number if 0 <= number < count else None


def _all_numbers(raw: dict[str, Any], count: int | None, path: str) -> dict[str, int]:
    found = {}
    for text, label in raw.items():
        number = _number_of(text, math.inf if count is None else count)
        if number is None:
            rule = "labels must be whole numbers from 0 where the model names no labels"
            raise RequestError(f"{rule}, got {label!r} in {path!r}")
        found[text] = number
    return found


def _distinct(found: dict[str, int], path: str) -> dict[str, int]:
    """The same, if no two labels are one class."""
    first: dict[int, str] = {}
    for text, index in found.items():
        if index in first:
            rule = f"labels must be a class each, got {first[index]!r} and {text!r} for output {index} in {path!r}"
            raise RequestError(f"{rule}; write them alike if they are the same")
        first[index] = text
    return found


def _refuse_both(raw: dict[str, Any], names: list[str], path: str) -> None:
    rule = f"labels must be names of the model or numbers of its outputs, got {_listed(raw)} in {path!r}"
    both = f"{rule}, which could be either as the model names its outputs {_listed(names)}"
    numbers = " ".join(map(str, range(len(names))))
    raise RequestError(
        f"{both}; --label-names {' '.join(names)} reads them as names, --label-names {numbers} as numbers"
    )


def _refuse(
    raw: dict[str, Any], by_name: dict[str, int], by_number: dict[str, int], names: list[str], table: Table
) -> None:
    """Say which label is wrong: one that is neither a name nor a number, or else a column of both."""
    unknown = [text for text in raw if text not in by_name and text not in by_number]
    if not unknown and table.classes is None:
        name, number = next(t for t in raw if t not in by_number), next(t for t in raw if t not in by_name)
        rule = f"labels must be all names of the model or all numbers of its outputs, got {raw[name]!r} beside"
        raise RequestError(f"{rule} {raw[number]!r} in {table.path!r}")
    first = raw[unknown[0]] if unknown else next(raw[text] for text in raw if text not in by_name)
    rule = f"labels must be among the model's {', '.join(names)} (or 0 to {len(names) - 1})"
    hint = ""
    if len(raw) <= len(names) and not any(text in by_number for text in raw):
        hint = f"; --label-names gives the names of the model's {len(names)} outputs, in their order"
        hint += f" (the data have {_listed(raw)})"
    raise RequestError(f"{rule}, got {first!r} in {table.path!r}{hint}")


def ids_of_lists(given: set[str], label_ids: dict[str, int], what: str, path: str) -> dict[str, int]:
    """The output of each of the labels `given`, which stand in lists: names, or numbers of outputs if none is a name.

    `what` they are is said in the error.

    Raises:
        RequestError: a label that the model does not have, naming it.
    """
    if not given & label_ids.keys() and all(name.isdecimal() and int(name) < len(label_ids) for name in given):
        return {name: int(name) for name in given}
    unknown = sorted(given - label_ids.keys())
    if unknown:
        known = ", ".join(sorted(label_ids, key=lambda name: label_ids[name]))
        rule = f"{what} must be among the model's {known}"
        hint = f"--label-names gives their names in order (the data have {', '.join(sorted(given))})"
        raise RequestError(f"{rule}, got {unknown[0]!r} in {path!r}; {hint}")
    return label_ids


def _listed(words: Any) -> str:
    return ", ".join(sorted(words) if isinstance(words, dict) else words)
