"""Files and Hub data sets -> tokenised rows -> batches."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import DataCollatorWithPadding

from niwaki.errors import RequestError

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "score")
SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet", ".txt")


@dataclass(frozen=True)
class Table:
    """A table as read: `texts` holds one tuple of strings a row, `labels` the raw label of each row or None."""

    path: str
    sha256: str | None
    text_columns: tuple[str, ...]
    label_column: str | None
    texts: list[tuple[str, ...]]
    labels: list[Any] | None

    def describe(self) -> dict[str, Any]:
        """The table as it stands in `result.json`."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "rows": len(self.texts),
            "text_columns": list(self.text_columns),
            "label_column": self.label_column,
        }

    def __str__(self) -> str:
        return f"{self.path}: {len(self.texts)} rows, text {' + '.join(self.text_columns)}, label {self.label_column}"


def read_table(
    source: str, text_columns: tuple[str, ...] | None = None, label_column: str | None = None, split: str = "train"
) -> Table:
    """Read a local file, or `split` of a Hub data set named `owner/name` or `glue/task`.

    Raises:
        RequestError: no such file, an unknown suffix, no rows, a column that is not there, a row without text or label.
    """
    path = Path(source)
    if path.is_file():
        frame, digest = _read_file(path), hashlib.sha256(path.read_bytes()).hexdigest()
    elif path.suffix in SUFFIXES or path.is_absolute():
        raise RequestError(f"data must be an existing file or a Hub data set, got {source!r}")
    else:
        frame, digest = _read_hub(source, split), None
    if frame.empty:
        raise RequestError(f"data must hold at least one row, got none in {source!r}")
    columns = [str(column) for column in frame.columns]
    texts = text_columns or next((group for group in TEXT_COLUMNS if set(group) <= set(columns)), None)
    if texts is None:
        raise RequestError(f"text_columns must be named: none recognised in {source!r} among {', '.join(columns)}")
    label = label_column or next((name for name in LABEL_COLUMNS if name in columns), None)
    for parameter, name in [*(("text_columns", t) for t in texts), ("label_column", label)]:
        if name is not None and name not in columns:
            raise RequestError(f"{parameter} must be among {', '.join(columns)} in {source!r}, got {name!r}")
    for name in [*texts, *([label] if label else [])]:
        missing = sum(pd.isna(value) for value in frame[name])
        if missing:
            raise RequestError(f"column {name!r} of {source!r} must have a value in every row, got {missing} without")
    rows = [tuple(str(value) for value in row) for row in frame[list(texts)].itertuples(index=False)]
    return Table(source, digest, tuple(texts), label, rows, frame[label].tolist() if label else None)


def _read_file(path: Path) -> pd.DataFrame:
    try:
        match path.suffix:
            case ".tsv":
                # GLUE files do not quote: a lone quotation mark is text.
                return pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False, na_values=[""])
            case ".csv":
                return pd.read_csv(path, keep_default_na=False, na_values=[""])
            case ".json" | ".jsonl":
                return pd.read_json(path, lines=path.suffix == ".jsonl")
            case ".parquet":
                return pd.read_parquet(path)
            case ".txt":
                return pd.DataFrame({"text": [line for line in path.read_text("utf-8").splitlines() if line.strip()]})
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (ValueError, OSError) as error:
        raise RequestError(f"data file {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    raise RequestError(f"data file must end in one of {' '.join(SUFFIXES)}, got {str(path)!r}")


def _read_hub(source: str, split: str) -> pd.DataFrame:
    from datasets import load_dataset

    name, _, task = source.partition("/") if source.startswith("glue/") else (source, "", "")
    try:
        return load_dataset(name, task or None, split=split).to_pandas()  # type: ignore[union-attr, return-value]
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise RequestError(f"data must be an existing file or a Hub data set, got {source!r}: {line}") from error


def is_regression(table: Table) -> bool:
    """Whether the labels are floats that are not all whole numbers."""
    return any(isinstance(label, float) and not label.is_integer() for label in table.labels or [])


def label_names(table: Table) -> list[str]:
    """The distinct labels, as text, sorted."""
    return sorted({str(label) for label in table.labels or []})


def encode(
    table: Table, tokenizer: Any, max_length: int, label_ids: dict[str, int], regression: bool = False
) -> list[dict[str, Any]]:
    """Tokenise every row; text labels become the model's ids, whole numbers pass through.

    Raises:
        RequestError: a label that the model does not have.
    """
    tokens = tokenizer(*_columns(table), truncation=True, max_length=max_length)
    rows = [{key: values[i] for key, values in tokens.items()} for i in range(len(table.texts))]
    if table.labels is not None:
        known = {name.lower(): index for name, index in label_ids.items()}
        for row, label in zip(rows, table.labels, strict=True):
            row["labels"] = float(label) if regression else _label_id(label, known, len(label_ids))
    return rows


def _columns(table: Table) -> list[list[str]]:
    columns = [list(column) for column in zip(*table.texts, strict=True)]
    if len(columns) > 2:
        raise RequestError(f"text_columns must be one or two, got {', '.join(table.text_columns)}")
    return columns


def _label_id(label: Any, known: dict[str, int], count: int) -> int:
    if str(label).lower() in known:
        return known[str(label).lower()]
    try:
        number = float(label)
    except ValueError:
        number = -1.0
    if number.is_integer() and 0 <= number < count:
        return int(number)
    raise RequestError(f"labels must be among the model's {', '.join(known)} (or 0 to {count - 1}), got {label!r}")


def sample(rows: list[Any], count: int, seed: int) -> list[Any]:
    """`count` rows drawn without replacement, the same for the same seed; all rows where there are fewer."""
    return list(rows) if count >= len(rows) else random.Random(seed).sample(rows, count)


class Batches:
    """Padded batches over `rows`, again and again; sorted by length so that little is padded."""

    def __init__(self, rows: list[dict[str, Any]], tokenizer: Any, batch_size: int) -> None:
        self.rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        self.collate = DataCollatorWithPadding(tokenizer)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield dict(self.collate(self.rows[start : start + self.batch_size]))
