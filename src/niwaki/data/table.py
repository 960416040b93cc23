"""A table of texts and raw labels, whatever it was read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from niwaki.data.delimited import Dialect
from niwaki.errors import RequestError


@dataclass(frozen=True)
class Table:
    """A table as read: `texts` holds one tuple of strings a row, `labels` the raw label of each row or None.

    `sha256` is that of the file, None for a Hub data set, which has a `split`. A raw label is a string, a bool, an
    integer or a float, or a list of them where several hold; where the data set names its classes, a name among these
    `classes`, which are in its own order. Of a `tagged` table a row's strings are its words, and its label is a list
    with the tag of each. `columns` are all that were seen. `dialect` says how delimited text was written.
    """

    path: str
    sha256: str | None
    rows: int
    text_columns: tuple[str, ...]
    label_column: str | None
    texts: list[tuple[str, ...]]
    labels: list[Any] | None
    columns: tuple[str, ...] = ()
    dialect: Dialect | None = None
    split: str | None = None
    classes: tuple[str, ...] | None = None
    tagged: bool = False
    ids: tuple[str, ...] | None = None
    """Of questions on contexts, what each is called; a label is then a list of answers, `{"text", "start"}` each."""
    choices: bool = False
    """Whether a row's strings are a prompt and what may follow it; a label is then the number of the right one."""

    @property
    def several(self) -> bool:
        """Whether several labels can hold of a row: some row's label is a list, or text with `|` between names.

        In a column that is called `labels` commas stand between names, too.
        """
        marks = "|," if (self.label_column or "").lower() == "labels" else "|"
        lists = (isinstance(label, list) for label in self.labels or ())
        texts = (isinstance(label, str) and any(mark in label for mark in marks) for label in self.labels or ())
        return not self.tagged and self.ids is None and (any(lists) or any(texts))

    def describe(self) -> dict[str, Any]:
        """The table as it stands in `result.json`."""
        described = {
            "path": self.path,
            "sha256": self.sha256,
            "rows": self.rows,
            "text_columns": list(self.text_columns),
            "label_column": self.label_column,
        }
        return described if self.split is None else described | {"split": self.split}

    def __str__(self) -> str:
        source = self.path if self.split is None else f"{self.path} ({self.split})"
        said = f"{source}: {self.rows} rows, text {' + '.join(self.text_columns)}, label {self.label_column}"
        usual = Dialect(*{".csv": (",", True), ".tsv": ("\t", False)}.get(Path(self.path).suffix.lower(), ("", False)))
        return said if self.dialect in (None, usual) else f"{said}; {self.dialect}"

    def seen(self) -> str:
        """The columns that were seen and what stands between them, for an error about one that was not recognised."""
        return seen(self.columns, self.dialect)


@dataclass(frozen=True)
class Source:
    """A frame as it was read, with what was seen on the way to it."""

    frame: pd.DataFrame
    sha256: str | None = None
    dialect: Dialect | None = None
    split: str | None = None
    classes: dict[str, tuple[str, ...]] | None = None
    tags: str | None = None
    """What the column of tags is called where the file names no columns."""


def seen(columns: tuple[str, ...], dialect: Dialect | None) -> str:
    """Columns, and what stands between them, as an error says them."""
    return f"{', '.join(columns)}{f' (with {dialect})' if dialect else ''}"


def check_own(name: str, given: Any, own: Any, source: str) -> None:
    """Refuse to be told of another column than the one that data of a form of their own have it in.

    Raises:
        RequestError: naming both.
    """
    if given is not None and given != own:
        rule = f"{name} must be {own!r}" if own is not None else f"{name} must not be given"
        raise RequestError(f"{rule} for questions of the form of {source!r}, got {given!r}")


def recognised(groups: Iterable[tuple[str, ...]], columns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The columns of the first group that are all there, by exact name or else by name without case."""
    known = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
    return next((tuple(known[name] for name in group) for group in groups if set(group) <= known.keys()), None)


def is_missing(value: Any) -> bool:
    """Whether a value is none, or blank text, or holds such a one."""
    if is_several(value):
        return not isinstance(value, dict) and any(is_missing(each) for each in as_list(value))
    return bool(pd.isna(value)) or (isinstance(value, str) and not value.strip())


def recognised_labels(frame: pd.DataFrame, names: tuple[str, ...], columns: tuple[str, ...]) -> str | None:
    """The first of these `names` among the columns; None where there is none, or one without a value, as test sets."""
    (found,) = recognised([(name,) for name in names], columns) or (None,)
    values = None if found is None else frame[found]
    empty = isinstance(values, pd.Series) and all(is_missing(x) and not is_several(x) for x in values.tolist())
    return None if empty else found


def is_several(value: Any) -> bool:
    """Whether a value is not one but several."""
    return isinstance(value, dict | list | tuple) or bool(getattr(value, "shape", ()))  # Parquet gives arrays


def as_list(value: Any) -> Any:
    """An array of a Parquet file or a tuple as a list."""
    return list(value.tolist() if hasattr(value, "tolist") else value) if is_several(value) else value
