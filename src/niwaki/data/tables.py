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

from niwaki.data.conll import read_conll
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
WORDS_COLUMN = "tokens"
TAG_COLUMNS = ("tags", "ner_tags", "labels", "pos_tags", "upos")
"""Of a table whose rows are lists of words, with a tag each."""


SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet", ".txt", ".conll", ".conllu")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


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

    @property
    def several(self) -> bool:
        """Whether several labels can hold of a row: some row's label is a list, or text with `|` between names."""
        several = (isinstance(label, list) or (isinstance(label, str) and "|" in label) for label in self.labels or ())
        return not self.tagged and any(several)

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
    tags: str | None = None
    """What the column of tags is called where the file names no columns."""


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
    read = _read(source, split, parameter, hub_split, config, label_column)
    if read.frame.empty:
        raise RequestError(f"{parameter} must hold at least one row, got none in {source!r}")
    frame, columns = read.frame, tuple(read.frame.columns)
    if _is_tagged(frame, text_columns):
        return _tagged(read, source, text_columns, label_column)
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
    labels = raw_labels([_plain(value) for value in frame[label].tolist()], label) if label else None
    classes = (read.classes or {}).get(label or "")
    return Table(
        source, read.sha256, len(rows), tuple(texts), label, rows, labels, columns, read.dialect, read.split, classes
    )


def _is_tagged(frame: pd.DataFrame, text_columns: tuple[str, ...] | None) -> bool:
    """Whether the rows are lists of words: in the one column that is named, or else in `tokens`."""
    column = (text_columns or (WORDS_COLUMN,))[0]
    named = column in frame.columns and isinstance(frame[column], pd.Series) and len(text_columns or ()) < 2
    return named and all(_is_words(value) for value in frame[column].tolist())


def _is_words(value: Any) -> bool:
    return _is_several(value) and not isinstance(value, dict) and all(isinstance(word, str) for word in value)


def _tagged(read: _Source, source: str, text_columns: tuple[str, ...] | None, label_column: str | None) -> Table:
    """A table of words, with a tag each where there is a column of them.

    Raises:
        RequestError: no column of that name, or a row with another number of tags than of words.
    """
    frame, columns = read.frame, tuple(read.frame.columns)
    seen, shown = _seen(columns, read.dialect), source if read.split is None else f"{source} ({read.split})"
    (words,) = text_columns or (WORDS_COLUMN,)
    label = label_column if label_column in columns or read.tags is None else "tags"
    if label is None:
        free = tuple(column for column in columns if column != words)
        (label,) = _recognised([(name,) for name in TAG_COLUMNS], free) or (None,)
    if label is not None and label not in columns:
        raise RequestError(f"label_column must be among {seen} in {shown!r}, got {label!r}")
    texts = [tuple(row) for row in frame[words].tolist()]
    labels = [_plain(value) for value in frame[label].tolist()] if label else None
    for number, (text, tags) in enumerate(zip(texts, labels or [], strict=False), 1):
        if not isinstance(tags, list) or len(tags) != len(text):
            found = f"{len(tags)} tags" if isinstance(tags, list) else f"a {type(tags).__name__}"
            rule = f"label_column: {label!r} of {shown!r} must have a tag for each word"
            raise RequestError(f"{rule}, got {found} for {len(text)} words in row {number}")
    classes = (read.classes or {}).get(label or "")
    named = read.tags or label
    return Table(
        source,
        read.sha256,
        len(texts),
        (words,),
        named,
        texts,
        labels,
        columns,
        read.dialect,
        read.split,
        classes,
        True,
    )


def _plain(value: Any) -> Any:
    """An array of a Parquet file or a tuple as a list."""
    return list(value.tolist() if hasattr(value, "tolist") else value) if _is_several(value) else value


def _read(
    source: str, role: str, parameter: str, hub_split: str | None, config: str | None, label_column: str | None
) -> _Source:
    path = Path(source)
    if path.is_file():
        found = _read_file(path, parameter, label_column)
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
    return isinstance(value, dict | list | tuple) or bool(getattr(value, "shape", ()))  # Parquet gives arrays


def _read_file(path: Path, parameter: str, label_column: str | None) -> _Source:
    suffix, dialect, classes, named = path.suffix.lower(), None, None, None
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
            case ".conll" | ".conllu":
                words, tags, named = read_conll(read_text(path), suffix == ".conllu", label_column)
                frame = pd.DataFrame({WORDS_COLUMN: words, "tags": tags}, dtype=object)
            case _:
                frame = pd.DataFrame({"text": [line for line in read_lines(path) if line.strip()]})
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())
        raise RequestError(f"{parameter} must be a file that can be read, got {str(path)!r}: {line}") from error
    return _Source(frame, hashlib.sha256(path.read_bytes()).hexdigest(), dialect, None, classes, named)


def _classes_of_parquet(path: Path) -> dict[str, tuple[str, ...]]:
    """The names of classes that `datasets` leaves in the files that it writes."""
    from pyarrow.parquet import read_schema

    noted = (read_schema(path).metadata or {}).get(b"huggingface")
    features = json.loads(noted).get("info", {}).get("features", {}) if noted else {}
    inner = {c: f.get("feature", f) if isinstance(f, dict) else None for c, f in features.items()}
    named = {c: f.get("names") for c, f in inner.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
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
