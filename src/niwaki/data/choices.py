"""Rows of a prompt, several texts that may follow it, and which of them is right -> a table, and tokenised rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from niwaki.data.questions import PROMPTS, WrongRowError, answer_key, question_of
from niwaki.data.table import Source, Table, as_list, check_own
from niwaki.errors import RequestError


def is_choices(frame: pd.DataFrame) -> bool:
    """Whether the columns are those of one of the shapes that `niwaki.data.questions` knows."""
    columns = set(map(str, frame.columns))
    prompted = bool(columns & set(PROMPTS)) and "choices" in columns
    return (
        prompted or {"goal", "sol1", "sol2"} <= columns or ("endings" in columns and bool(columns & {"ctx", "ctx_a"}))
    )


def choices_table(read: Source, source: str, label_column: str | None = None) -> Table:
    """A table whose rows are a prompt and its choices, the label the number of the right one.

    Raises:
        RequestError: a row of another shape, or with another number of choices than the first; some rows have an answer
            and some have none; a `label_column` that rows of this shape do not have it in.
    """
    columns = tuple(read.frame.columns)
    rows: list[dict[str, Any]] = [
        {str(key): _plain(value) for key, value in row.items()} for row in read.frame.to_dict("records")
    ]
    check_own("label_column", label_column, answer_key(rows[0]), source)
    questions = []
    for number, row in enumerate(rows, 1):
        try:
            questions.append(question_of(row, unanswered=True))
        except WrongRowError as error:
            raise RequestError(f"row {number} of {source!r} {error}") from error
        if len(questions[-1].choices) != len(questions[0].choices):
            rule = f"choices must be as many in every row, {len(questions[0].choices)} as in the first"
            raise RequestError(f"{rule}, got {len(questions[-1].choices)} in row {number} of {source!r}")
    answers = [question.gold for question in questions]
    if None in answers and any(answer is not None for answer in answers):
        number = answers.index(None) + 1
        raise RequestError(f"answer must be there in every row or in none, got none in row {number} of {source!r}")
    labels = None if None in answers else answers
    texts = [(question.prompt, *question.choices) for question in questions]
    return Table(
        source, read.sha256, len(texts), ("prompt", "choices"), None if labels is None else "answer", texts, labels,
        columns, read.dialect, read.split, choices=True,
    )  # fmt: skip


def encode_choices(table: Table, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenise the prompt of every row with each of its choices; of what is too long the prompt is cut.

    Raises:
        RequestError: a choice that leaves no room for a prompt.
    """
    rows = []
    for number, (prompt, *choices) in enumerate(table.texts):
        why = None
        try:
            row = dict(tokenizer([prompt] * len(choices), choices, truncation="only_first", max_length=max_length))
        except Exception as error:  # tokenizers raise no class of their own
            row, why = {"input_ids": []}, error
        if why or any(len(ids) > max_length for ids in row["input_ids"]):
            rule = f"max_length must leave room for a prompt beside each choice, got {max_length}"
            because = f": {why}" if why else ""
            raise RequestError(f"{rule} for row {number + 1} of {table.path!r}{because}") from why
        if table.labels is not None:
            row["labels"] = table.labels[number]
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """Arrays of a Parquet file as lists, also inside; a value that is missing as None."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    value = as_list(value)
    return None if isinstance(value, float) and value != value else value
