"""A table -> tokenised rows, and samples of them."""

from __future__ import annotations

import random
from typing import Any

from niwaki.data.labels import _label_id, _number
from niwaki.data.tables import (
    Table,
)
from niwaki.errors import RequestError


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


def _columns(table: Table) -> list[list[str]]:
    columns = [list(column) for column in zip(*table.texts, strict=True)]
    if len(columns) > 2:
        raise RequestError(f"text_columns must be one or two, got {', '.join(table.text_columns)}")
    return columns


def sample(rows: list[Any], n: int, seed: int) -> list[Any]:
    """`n` rows drawn without replacement, the same for the same seed; all rows where there are fewer."""
    return list(rows) if n >= len(rows) else random.Random(seed).sample(rows, n)
