"""Files and Hub data sets -> tokenised rows -> batches."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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


def is_regression(table: Table) -> bool:
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


def encode(
    table: Table, tokenizer: Any, max_length: int, label_ids: dict[str, int] | None, regression: bool = False
) -> list[dict[str, Any]]:
    """Tokenise every row, cut at `max_length` tokens; `labels` is there when the table has labels.

    A label is looked up in `label_ids` by its name, then by its name without case; a whole number that is no name is
    the id itself. Without `label_ids` every whole number from 0 is an id. With `regression` labels are floats.

    Raises:
        RequestError: a label that the model does not have, or one that is not a finite number for a regression.
    """
    tokens = tokenizer(*_columns(table), truncation=True, max_length=max_length)
    rows = [{key: values[i] for key, values in tokens.items()} for i in range(table.rows)]
    if table.labels is not None:
        known = {name.lower(): index for name, index in (label_ids or {}).items()} | (label_ids or {})
        for row, label in zip(rows, table.labels, strict=True):
            row["labels"] = _number(label) if regression else _label_id(label, known, label_ids, table.path)
    return rows


def label_map(table: Table, rows: list[dict[str, Any]], label_ids: dict[str, int]) -> str:
    """What became of each label, for a person: its name, and the model's name for it where that is another."""
    names = {index: name for name, index in label_ids.items()}
    found = {(row["labels"], _label_name(label)) for label, row in zip(table.labels or [], rows, strict=True)}
    return ", ".join(label if label == names.get(i) else f"{label} is {names.get(i, i)}" for i, label in sorted(found))


def _columns(table: Table) -> list[list[str]]:
    columns = [list(column) for column in zip(*table.texts, strict=True)]
    if len(columns) > 2:
        raise RequestError(f"text_columns must be one or two, got {', '.join(table.text_columns)}")
    return columns


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


def sample(rows: list[Any], n: int, seed: int) -> list[Any]:
    """`n` rows drawn without replacement, the same for the same seed; all rows where there are fewer."""
    return list(rows) if n >= len(rows) else random.Random(seed).sample(rows, n)


class Batches:
    """Padded batches over `rows`: dicts of tensors `[batch, tokens]`, `labels` `[batch]`; the same at each iteration.

    Rows are sorted by length, so that little is padded, unless `sort_by_length` is off (the order of `rows`) or
    `shuffle_seed` is given (an order drawn from that seed).
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        tokenizer: Any,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        sort_by_length: bool = True,
    ) -> None:
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, got {batch_size}")
        self.rows = list(rows)
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(self.rows)
        elif sort_by_length:
            self.rows.sort(key=lambda row: len(row["input_ids"]))
        self.collate = DataCollatorWithPadding(tokenizer)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self._batch(self.rows[start : start + self.batch_size])

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The padded rows; the labels of a row that has one a token are padded with -100 on the same side."""
        if not isinstance(rows[0].get("labels"), list):
            return dict(self.collate(rows))
        batch = dict(self.collate([{k: v for k, v in row.items() if k != "labels"} for row in rows]))
        mask = token_mask(batch).bool()
        labels = torch.full(mask.shape, -100)
        labels[mask] = torch.tensor([label for row in rows for label in row["labels"]])
        return {**batch, "labels": labels}


def token_mask(batch: dict[str, Any]) -> torch.Tensor:
    """`[rows, length]`, 1 where a token is real; all are where the batch has no attention mask."""
    mask = batch.get("attention_mask")
    return mask if mask is not None else torch.ones_like(batch["input_ids"])


def mean_length(batches: Iterable[dict[str, Any]]) -> float:
    """Mean number of real tokens (those that the attention mask keeps) of a sequence.

    Raises:
        RequestError: no batch at all, or padding alone.
    """
    tokens = rows = 0
    for batch in batches:
        mask = token_mask(batch)
        tokens += int(mask.sum())
        rows += len(mask)
    if not rows:
        raise RequestError("data must give at least one batch, got none")
    if not tokens:
        raise RequestError("data must hold real tokens, got an attention mask that is 0 everywhere")
    return tokens / rows
