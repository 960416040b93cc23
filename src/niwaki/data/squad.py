"""Questions on contexts, with answers that stand in them, as SQuAD 1.1 and 2.0 have them -> a table."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from niwaki.data.table import Source, Table, check_own, is_several
from niwaki.errors import RequestError

COLUMNS = ("question", "context", "answers")


def squad_rows(text: str) -> list[dict[str, Any]] | None:
    """The questions of a file in SQuAD's form, one a row; None for JSON of another form.

    Raises:
        ValueError: a part of that form that is missing.
    """
    try:
        found = json.loads(text)
    except ValueError:
        return None
    articles = found.get("data") if isinstance(found, dict) else None
    if not isinstance(articles, list) or not all(isinstance(a, dict) and "paragraphs" in a for a in articles):
        return None
    try:
        pairs = [(p["context"], asked) for article in articles for p in article["paragraphs"] for asked in p["qas"]]
        return [
            {"id": asked.get("id", number), "question": asked["question"], "context": context,
             "answers": asked.get("answers")}
            for number, (context, asked) in enumerate(pairs, 1)
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        rule = "paragraphs must have a context and qas, each with a question, as SQuAD has them"
        raise ValueError(f"{rule}, got {type(error).__name__}: {error}") from error


def is_answered(frame: pd.DataFrame) -> bool:
    """Whether the rows are questions on contexts."""
    return all(column in frame.columns for column in COLUMNS)


def answered_table(
    read: Source, source: str, text_columns: tuple[str, ...] | None = None, label_column: str | None = None
) -> Table:
    """A table of questions on contexts: texts are the two, the label is a list of `{"text", "start"}`, empty for none.

    Raises:
        RequestError: a row without a question, a context or answers (an empty list, or an empty text, says that there
            is none), or answers that do not stand in the context where they say: how many, and the first one's id;
            columns of other names asked for.
    """
    check_own("text_columns", text_columns, COLUMNS[:2], source)
    check_own("label_column", label_column, COLUMNS[2], source)
    frame = read.frame
    ids = list(map(str, frame["id"] if "id" in frame.columns else range(1, len(frame) + 1)))
    texts = list(zip(frame["question"], frame["context"], strict=True))
    labels, wrong = [], []
    for name, (asked, context), given in zip(ids, texts, frame["answers"], strict=True):
        for what, text in (("question", asked), ("context", context)):
            if not isinstance(text, str) or not text.strip():
                rule = f"text_columns: every {what} of {source!r} must be text"
                raise RequestError(f"{rule}, got {str(text)[:40]!r} for {name!r}")
        answers = _answers(given)
        if answers is None:
            raise RequestError(f"label_column: every question of {source!r} must have answers, got none for {name!r}")
        if not all(_stands(answer, context) for answer in answers):
            wrong.append(name)
        labels.append(answers)
    if wrong:
        rule = f"answers of {source!r} must stand in their context at the offset that they give"
        raise RequestError(f"{rule}, got {len(wrong)} that do not, first {wrong[0]!r}")
    columns = tuple(frame.columns)
    return Table(
        path=source,
        sha256=read.sha256,
        rows=len(texts),
        text_columns=COLUMNS[:2],
        label_column=COLUMNS[2],
        texts=texts,
        labels=labels,
        columns=columns,
        split=read.split,
        ids=tuple(ids),
    )


def _stands(answer: dict[str, Any], context: str) -> bool:
    """Whether an answer is in its context where it says."""
    return answer["start"] >= 0 and context.startswith(answer["text"], answer["start"])


def _answers(given: Any) -> list[dict[str, Any]] | None:
    """Answers as a list of objects, from SQuAD's files or, as two lists, from data sets; those without text are none.

    Lists may be arrays, as Parquet gives them.
    """
    try:
        if isinstance(given, dict):
            pairs = list(zip(list(given["text"]), list(given["answer_start"]), strict=True))
        elif is_several(given):
            pairs = [(answer["text"], answer["answer_start"]) for answer in given]
        else:
            return None
        return [{"text": str(text), "start": int(start)} for text, start in pairs if str(text).strip()]
    except (KeyError, TypeError, ValueError):
        return None
