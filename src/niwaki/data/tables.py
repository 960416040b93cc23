"""Files and Hub data sets -> tables of texts and raw labels."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

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
    """A table as read: `texts` holds one tuple of strings a row, `labels` the raw label of each row or None.

    `sha256` is that of the file, None for a Hub data set. A raw label is a string, an integer or a float.
    """

    path: str
    sha256: str | None
    rows: int
    text_columns: tuple[str, ...]
    label_column: str | None
    texts: list[tuple[str, ...]]
    labels: list[Any] | None

    def describe(self) -> dict[str, Any]:
        """The table as it stands in `result.json`."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "rows": self.rows,
            "text_columns": list(self.text_columns),
            "label_column": self.label_column,
        }

    def __str__(self) -> str:
        return f"{self.path}: {self.rows} rows, text {' + '.join(self.text_columns)}, label {self.label_column}"


def read_table(
    source: str, text_columns: tuple[str, ...] | None = None, label_column: str | None = None, split: str = "train"
) -> Table:
    """Read a local file, or `split` of a Hub data set named `owner/name` or `glue/task`.

    Columns that are not named are recognised: pairs of texts first, then one text; `label`, then `score`. A split other
    than `train` is named `eval_data` in errors.

    Raises:
        RequestError: no such file, an unknown suffix, no rows, a column that is not there, a row without text or label.
    """
    parameter = "train_data" if split == "train" else "eval_data"
    path = Path(source)
    if path.is_file():
        frame, digest = _read_file(path, parameter), hashlib.sha256(path.read_bytes()).hexdigest()
    elif path.exists() or path.suffix.lower() in SUFFIXES or path.is_absolute() or source.startswith("."):
        raise RequestError(f"{parameter} must be an existing file or a Hub data set, got {source!r}")
    else:
        frame, digest = _read_hub(source, split, parameter), None
    if frame.empty:
        raise RequestError(f"{parameter} must hold at least one row, got none in {source!r}")
    columns = [str(column) for column in frame.columns]
    texts = text_columns or next((group for group in TEXT_COLUMNS if set(group) <= set(columns)), None)
    if texts is None:
        raise RequestError(f"text_columns must be named: none recognised in {source!r} among {', '.join(columns)}")
    label = label_column or next((name for name in LABEL_COLUMNS if name in columns and name not in texts), None)
    for asked, name in [*(("text_columns", t) for t in texts), ("label_column", label)]:
        if name is None:
            continue
        if name not in columns:
            raise RequestError(f"{asked} must be among {', '.join(columns)} in {source!r}, got {name!r}")
        missing = sum(pd.isna(value) is True for value in frame[name])
        if missing:
            rule = f"{asked}: {name!r} of {source!r} must have a value in every row"
            raise RequestError(f"{rule}, got {missing} of {len(frame)} rows without")
    rows = [tuple(str(value) for value in row) for row in frame[list(texts)].itertuples(index=False)]
    return Table(
        source, digest, len(rows), tuple(texts), label, rows, _raw_labels(frame[label].tolist()) if label else None
    )


def _read_file(path: Path, parameter: str) -> pd.DataFrame:
    suffix = path.suffix.lower()
    try:
        match suffix:
            case ".tsv" | ".csv":
                # As text: a sentence "007" stays one. GLUE's .tsv do not quote: a lone quotation mark is text.
                layout: dict[str, Any] = {"sep": "\t", "quoting": 3} if suffix == ".tsv" else {}
                frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], **layout)
                if not isinstance(frame.index, pd.RangeIndex):
                    raise ValueError("the rows have more fields than the header")
                return frame
            case ".json" | ".jsonl":
                text = path.read_text("utf-8")
                lines = (line for line in text.split("\n") if line.strip())
                found = [json.loads(line) for line in lines] if suffix == ".jsonl" else json.loads(text)
                if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
                    raise ValueError("the rows must be a list of objects")
                return pd.DataFrame(found)
            case ".parquet":
                return pd.read_parquet(path)
            case ".txt":
                return pd.DataFrame({"text": [line for line in path.read_text("utf-8").split("\n") if line.strip()]})
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())
        raise RequestError(f"{parameter} must be a file that can be read, got {str(path)!r}: {line}") from error
    raise RequestError(f"{parameter} must end in one of {' '.join(SUFFIXES)}, got {str(path)!r}")


def _raw_labels(values: list[Any]) -> list[Any]:
    """The labels as plain values; text that is a finite number in every row becomes integers or floats."""
    try:
        numbers: list[Any] = cast(Any, pd.to_numeric(pd.Series(values))).tolist()
    except (ValueError, TypeError):
        return values
    return numbers if all(math.isfinite(number) for number in numbers) else values


def _read_hub(source: str, split: str, parameter: str) -> pd.DataFrame:
    from datasets import load_dataset

    name, _, task = source.partition("/") if source.startswith("glue/") else (source, "", "")
    try:
        return load_dataset(name, task or None, split=split).to_pandas()  # type: ignore[union-attr, return-value]
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        rule = f"{parameter} must be an existing file ({' '.join(SUFFIXES)}) or a Hub data set"
        raise RequestError(f"{rule}, got {source!r}: {line}") from error
