"""Files and Hub data sets -> tables of texts and raw labels."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from niwaki.data.delimited import Dialect, read_delimited
from niwaki.data.hub import name_classes_, read_hub
from niwaki.data.objects import read_objects
from niwaki.data.text_files import read_lines, read_text
from niwaki.errors import RequestError

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)


LABEL_COLUMNS = ("label", "labels", "score")


SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet", ".txt")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Table:
    """A table as read: `texts` holds one tuple of strings a row, `labels` the raw label of each row or None.

    `sha256` is that of the file, None for a Hub data set, which has a `split`. A raw label is a string, a bool, an
    integer or a float; where the data set names its classes, a name among these `classes`, which are in its own order.
    `columns` are all that were seen. `dialect` says how delimited text was written.
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
        return _seen(self.columns, self.dialect)


@dataclass(frozen=True)
class _Source:
    """A frame, with what was seen on the way to it."""

    frame: pd.DataFrame
    sha256: str | None = None
    dialect: Dialect | None = None
    split: str | None = None
    classes: dict[str, tuple[str, ...]] | None = None


def read_table(
    source: str,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    split: str = "train",
    *,
    hub_split: str | None = None,
    config: str | None = None,
) -> Table:
    """Read a local file, or a Hub data set named `owner/name` or `glue/task` (or a folder of one).

    Columns that are not named are recognised, whatever their case: pairs of texts first, then one text; `label`,
    `labels`, `score`. `split` says what the data are for, `train` or `validation`; of a Hub data set that is the split
    which is read, unless `hub_split` names another (see `niwaki.data.hub`), of its configuration `config`.

    Raises:
        RequestError: no such file, an unknown suffix, a file that does not read, no rows, a column that is not there,
            a row without text or label.
    """
    parameter = "train_data" if split == "train" else "eval_data"
    read = _read(source, split, parameter, hub_split, config)
    if read.frame.empty:
        raise RequestError(f"{parameter} must hold at least one row, got none in {source!r}")
    frame, columns = read.frame, tuple(read.frame.columns)
    texts = text_columns or _recognised(TEXT_COLUMNS, columns)
    seen, shown = _seen(columns, read.dialect), source if read.split is None else f"{source} ({read.split})"
    if texts is None:
        rule = f"text_columns must be named (--text-columns): none recognised in {shown!r} among {seen}"
        raise RequestError(rule)
    label = label_column
    if label is None:
        free = tuple(column for column in columns if column not in texts)
        (label,) = _recognised([(name,) for name in LABEL_COLUMNS], free) or (None,)
    for asked, name in [*(("text_columns", t) for t in texts), ("label_column", label)]:
        if name is not None:
            _check_column(frame, name, asked, shown, seen)
    rows = [tuple(str(value) for value in row) for row in frame[list(texts)].itertuples(index=False)]
    labels = raw_labels(frame[label].tolist(), label) if label else None
    classes = (read.classes or {}).get(label or "")
    return Table(
        source, read.sha256, len(rows), tuple(texts), label, rows, labels, columns, read.dialect, read.split, classes
    )


def _read(source: str, role: str, parameter: str, hub_split: str | None, config: str | None) -> _Source:
    path = Path(source)
    if path.is_file():
        found = _read_file(path, parameter)
    elif not path.is_dir() and (path.suffix.lower() in SUFFIXES or path.is_absolute() or source.startswith((".", "~"))):
        raise RequestError(f"{parameter} must be an existing file or a Hub data set, got {source!r}")
    else:
        hub = read_hub(source, role, hub_split, config)
        found = _Source(hub.frame, None, None, hub.split, hub.classes)
    found.frame.columns = [str(column).strip() for column in found.frame.columns]
    return found


def _recognised(groups: Iterable[tuple[str, ...]], columns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The columns of the first group that are all there, by exact name or else by name without case."""
    known = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
    return next((tuple(known[name] for name in group) for group in groups if set(group) <= known.keys()), None)


def _seen(columns: tuple[str, ...], dialect: Dialect | None) -> str:
    return f"{', '.join(columns)}{f' (with {dialect})' if dialect else ''}"


def _check_column(frame: pd.DataFrame, name: str, asked: str, source: str, seen: str) -> None:
    flag = f"--{asked.replace('_', '-')}"
    if name not in frame.columns:
        raise RequestError(f"{asked} must be among {seen} in {source!r}, got {name!r} ({flag} names it)")
    if not isinstance(frame[name], pd.Series):
        raise RequestError(f"{asked} must be one column, got several named {name!r} in {source!r}")
    values = frame[name].tolist()
    missing = sum(_is_missing(value) for value in values)
    if missing:
        rule = f"{asked}: {name!r} of {source!r} must have a value in every row"
        raise RequestError(f"{rule}, got {missing} of {len(frame)} rows without")
    if asked == "text_columns" and (wrong := next((x for x in values if _is_several(x)), None)) is not None:
        raise RequestError(f"{asked}: {name!r} of {source!r} must hold text, got a {type(wrong).__name__}")


def _is_missing(value: Any) -> bool:
    return pd.isna(value) is True or (isinstance(value, str) and not value.strip())


def _is_several(value: Any) -> bool:
    return isinstance(value, dict | list) or bool(getattr(value, "shape", ()))  # Parquet gives arrays


def _read_file(path: Path, parameter: str) -> _Source:
    suffix, dialect, classes = path.suffix.lower(), None, None
    if suffix not in SUFFIXES:
        raise RequestError(f"{parameter} must end in one of {' '.join(SUFFIXES)}, got {str(path)!r}")
    try:
        match suffix:
            case ".tsv" | ".csv":
                # All as text: a sentence "007" stays one.
                names, rows, dialect = read_delimited(read_text(path), _DELIMITERS[suffix])
                frame = pd.DataFrame(rows, columns=pd.Index(names, dtype=object), dtype=object)
            case ".json" | ".jsonl":
                frame = pd.DataFrame(read_objects(read_text(path), by_line=suffix == ".jsonl"), dtype=object)
            case ".parquet":
                frame = pd.read_parquet(path)
                classes = name_classes_(frame, _classes_of_parquet(path))
            case _:
                frame = pd.DataFrame({"text": [line for line in read_lines(path) if line.strip()]})
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())
        raise RequestError(f"{parameter} must be a file that can be read, got {str(path)!r}: {line}") from error
    return _Source(frame, hashlib.sha256(path.read_bytes()).hexdigest(), dialect, None, classes)


def _classes_of_parquet(path: Path) -> dict[str, tuple[str, ...]]:
    """The names of classes that `datasets` leaves in the files that it writes."""
    from pyarrow.parquet import read_schema

    noted = (read_schema(path).metadata or {}).get(b"huggingface")
    features = json.loads(noted).get("info", {}).get("features", {}) if noted else {}
    named = {c: f.get("names") for c, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    return {column: tuple(names) for column, names in named.items() if names}


def raw_labels(values: list[Any], column: str | None = None) -> list[Any]:
    """The labels as plain values; text that is a finite number in every row becomes integers or floats.

    Text stays text where numbers would lose something: leading zeros (`007`), or two spellings of what is one whole
    number (`1` and `1.0`), unless the numbers are to be predicted (not all whole, or a column `score`).
    """
    if any(isinstance(value, bool | list | dict) for value in values):
        return values
    texts = {value.strip() for value in values if isinstance(value, str)}
    try:
        numbers: list[Any] = cast(Any, pd.to_numeric(pd.Series(values))).tolist()
    except (ValueError, TypeError):
        return values
    if not all(math.isfinite(number) for number in numbers):
        return values
    classes = all(float(number).is_integer() for number in numbers) and (column or "").lower() != "score"
    if classes and (any(re.match(r"[+-]?0\d", text) for text in texts) or len(set(numbers)) < len(texts)):
        return values
    return numbers
