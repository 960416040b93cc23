"""A table -> tokenised rows, and samples of them."""

from __future__ import annotations

import random
from typing import Any

from niwaki.data.labels import class_ids, label_text, to_number
from niwaki.data.table import Table
from niwaki.errors import RequestError


def encode(
    table: Table,
    tokenizer: Any,
    max_length: int,
    label_ids: dict[str, int] | None,
    regression: bool = False,
    *,
    named: bool = False,
) -> list[dict[str, Any]]:
    """Tokenise every row, cut at `max_length` tokens; `labels` is there when the table has labels.

    `label_ids` are the outputs of the model by name, see `niwaki.data.labels.class_ids`; `named` says that the user
    gave the names. With `regression` labels are floats.

    Raises:
        RequestError: labels that are not the model's, or not finite numbers for a regression; a row without a token.
    """
    rows = encode_texts(table, tokenizer, max_length)
    if table.labels is not None:
        ids = {} if regression else class_ids(table, label_ids, named)
        for row, label in zip(rows, table.labels, strict=True):
            row["labels"] = to_number(label) if regression else ids[label_text(label)]
    return rows


def encode_texts(table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenise every row without its label, cut at `max_length` tokens.

    Raises:
        RequestError: a row without a token.
    """
    return tokenised(table, tokenizer, max_length, *_columns(table))


def tokenised(table: Table, tokenizer: Any, max_length: int, *texts: list[str]) -> list[dict[str, Any]]:
    """A row for every text of a list, or for every pair of two lists, in their order, cut at `max_length` tokens.

    Raises:
        RequestError: one without a token; `table` is where they come from. See `check_room`.
    """
    check_room(tokenizer, max_length, pair=len(texts) == 2)
    tokens = tokenizer(*texts, truncation=True, max_length=max_length)
    rows = [{key: values[index] for key, values in tokens.items()} for index in range(len(texts[0]))]
    bare = next((number for number, row in enumerate(rows) if not row["input_ids"]), None)
    if bare is not None:
        got = tuple(column[bare] for column in texts)
        row = bare * table.rows // len(rows) + 1  # where a row of the table has several texts, each is one
        raise RequestError(f"text_columns must hold a token in every row, got {got!r} as row {row} of {table.path!r}")
    return rows


def check_room(tokenizer: Any, max_length: int, *, pair: bool = False) -> None:
    """Refuse a length that leaves no room beside the special tokens: `tokenizers` would not cut at all.

    Raises:
        RequestError: saying the least length.
    """
    special = tokenizer.num_special_tokens_to_add(pair)
    if max_length <= special:
        rule = f"max_length must be at least {special + 1}, as the tokenizer adds {special} tokens to every text"
        raise RequestError(f"{rule}, got {max_length}")


def _columns(table: Table) -> list[list[str]]:
    columns = [list(column) for column in zip(*table.texts, strict=True)]
    if len(columns) > 2:
        raise RequestError(f"text_columns must be one or two, got {', '.join(table.text_columns)}")
    return columns


def sample(rows: list[Any], n: int, seed: int) -> list[Any]:
    """`n` rows drawn without replacement, the same for the same seed; all rows where there are fewer."""
    return list(rows) if n >= len(rows) else random.Random(seed).sample(rows, n)
