"""Files and Hub data sets -> tables of texts and raw labels."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any, cast

import pandas as pd

from niwaki.config.text import place_named
from niwaki.data.choices import choices_table, is_choices
from niwaki.data.conll import read_conll
from niwaki.data.delimited import read_delimited
from niwaki.data.hub import name_classes_, read_hub
from niwaki.data.objects import read_objects
from niwaki.data.plain_text import as_text_, check_text
from niwaki.data.sentences import SEARCHES
from niwaki.data.several import labels_that_hold
from niwaki.data.squad import answered_table, is_answered, squad_rows
from niwaki.data.table import Source, Table, as_list, is_missing, is_several, recognised, recognised_labels, seen
from niwaki.data.text_files import lines_in, text_in
from niwaki.data.words import WORDS_COLUMN, check_words, is_tagged, tagged_table
from niwaki.errors import RequestError

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    *SEARCHES,
    ("question", "context"),
    ("sentence",),
    ("text",),
)


LABEL_COLUMNS = ("label", "labels", "score")
SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet", ".txt", ".conll", ".conllu")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


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
    `labels`, `score`. A `label_column` with commas names several, a label each, that hold 0 or 1. `split` says what the
    data are for, `train` or `validation`; of a Hub data set that is the split which is read, unless `hub_split` names
    another (see `niwaki.data.hub`), of its configuration `config`.

    Raises:
        RequestError: no such file, an unknown suffix, a file that does not read, no rows, a column that is not there,
            a row without text or label, text that is no UTF-8.
    """
    parameter = "train_data" if split == "train" else "eval_data"
    source = place_named(parameter, source)
    read = _read(source, split, parameter, hub_split, config, label_column)
    if read.frame.empty:
        raise RequestError(f"{parameter} must hold at least one row, got none in {source!r}")
    table = _table(read, source, text_columns, label_column)
    check_text(table, parameter)
    return table


def _table(read: Source, source: str, text_columns: tuple[str, ...] | None, label_column: str | None) -> Table:
    """The table of what was read from `source`, in the form that its columns show."""
    frame, columns = read.frame, tuple(read.frame.columns)
    if is_tagged(frame, text_columns):
        return tagged_table(read, source, text_columns, label_column)
    if is_answered(frame):
        return answered_table(read, source, text_columns, label_column)
    if text_columns is None and is_choices(frame):
        return choices_table(read, source, label_column)
    texts = text_columns or recognised(TEXT_COLUMNS, columns)
    named, shown = seen(columns, read.dialect), source if read.split is None else f"{source} ({read.split})"
    if texts is None:
        check_words(frame, shown)
        rule = f"text_columns must be named (--text-columns): none recognised in {shown!r} among {named}"
        raise RequestError(rule)
    label = label_column
    if label is None:
        free = tuple(column for column in columns if column not in texts)
        label = recognised_labels(frame, LABEL_COLUMNS, free)
    several = () if label is None or label in columns else tuple(name.strip() for name in label.split(","))
    several = several if len(several) > 1 else ()
    for asked, names in (("text_columns", texts), ("label_column", several or (label,))):
        for name in names:
            if name is not None:
                _check_column(frame, name, asked, shown, named)
    rows = [tuple(str(value) for value in row) for row in frame[list(texts)].itertuples(index=False)]
    if several:
        labels, classes = labels_that_hold(frame, several, shown), several
    else:
        classes = (read.classes or {}).get(label or "")
        labels = [as_list(value) for value in frame[label].tolist()] if label else None
        labels = raw_labels(labels, label) if labels and not classes else labels
    return Table(
        source, read.sha256, len(rows), tuple(texts), label, rows, labels, columns, read.dialect, read.split, classes
    )


def _read(
    source: str, role: str, parameter: str, hub_split: str | None, config: str | None, label_column: str | None
) -> Source:
    path = Path(source)
    if path.is_file():
        found = _read_file(path, parameter, label_column)
    elif not path.is_dir() and (path.suffix.lower() in SUFFIXES or path.is_absolute() or source.startswith((".", "~"))):
        raise RequestError(f"{parameter} must be an existing file or a Hub data set, got {source!r}")
    else:
        hub = read_hub(source, role, hub_split, config)
        as_text_(hub.frame)
        found = Source(hub.frame, None, None, hub.split, hub.classes)
    found.frame.columns = [str(column).strip() for column in found.frame.columns]
    return found


def _check_column(frame: pd.DataFrame, name: str, asked: str, source: str, columns: str) -> None:
    flag = f"--{asked.replace('_', '-')}"
    if name not in frame.columns:
        raise RequestError(f"{asked} must be among {columns} in {source!r}, got {name!r} ({flag} names it)")
    if not isinstance(frame[name], pd.Series):
        raise RequestError(f"{asked} must be one column, got several named {name!r} in {source!r}")
    values = frame[name].tolist()
    missing = sum(is_missing(value) for value in values)
    if missing:
        rule = f"{asked}: {name!r} of {source!r} must have a value in every row"
        raise RequestError(f"{rule}, got {missing} of {len(frame)} rows without")
    if asked == "text_columns" and (wrong := next((x for x in values if is_several(x)), None)) is not None:
        raise RequestError(f"{asked}: {name!r} of {source!r} must hold text, got a {type(wrong).__name__}")


def _read_file(path: Path, parameter: str, label_column: str | None) -> Source:
    suffix, dialect, classes, named = path.suffix.lower(), None, None, None
    if suffix not in SUFFIXES:
        raise RequestError(f"{parameter} must end in one of {' '.join(SUFFIXES)}, got {str(path)!r}")
    try:
        raw = path.read_bytes()  # once: the hash is that of what was read
        match suffix:
            case ".tsv" | ".csv":
                # All as text: a sentence "007" stays one.
                names, rows, dialect = read_delimited(text_in(raw), _DELIMITERS[suffix])
                frame = pd.DataFrame(rows, columns=pd.Index(names, dtype=object), dtype=object)
            case ".json" | ".jsonl":
                text = text_in(raw)
                rows = squad_rows(text) or read_objects(text, by_line=suffix == ".jsonl")
                frame = pd.DataFrame(rows, dtype=object)
            case ".parquet":
                frame = pd.read_parquet(io.BytesIO(raw))
                classes = name_classes_(frame, _classes_of_parquet(raw))
                as_text_(frame)
            case ".conll" | ".conllu":
                words, tags, named = read_conll(text_in(raw), suffix == ".conllu", label_column)
                frame = pd.DataFrame({WORDS_COLUMN: words, "tags": tags}, dtype=object)
            case _:
                frame = pd.DataFrame({"text": [line for line in lines_in(raw) if line.strip()]})
    except (ValueError, OSError, RecursionError) as error:  # JSON that is nested too deeply
        line = " ".join(str(error).split())
        raise RequestError(f"{parameter} must be a file that can be read, got {str(path)!r}: {line}") from error
    return Source(frame, hashlib.sha256(raw).hexdigest(), dialect, None, classes, named)


def _classes_of_parquet(raw: bytes) -> dict[str, tuple[str, ...]]:
    """The names of classes that `datasets` leaves in the files that it writes."""
    from pyarrow.parquet import read_schema

    noted = (read_schema(io.BytesIO(raw)).metadata or {}).get(b"huggingface")
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
