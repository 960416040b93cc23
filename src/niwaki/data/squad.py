"""Questions on contexts, with answers that stand in them, as SQuAD 1.1 and 2.0 have them -> a table."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from niwaki.data.table import Source, Table
from niwaki.errors import RequestError

COLUMNS = ("question", "context", "answers")


def squad_rows(text: str) -> list[dict[str, Any]] | None:
    """The questions of a file in SQuAD's form, one a row; None for JSON of another form."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    articles = found.get("data") if isinstance(found, dict) else None
    if not isinstance(articles, list) or not all(isinstance(a, dict) and "paragraphs" in a for a in articles):
        return None
    return [
        {"id": str(asked.get("id", "")), "question": asked["question"], "context": paragraph["context"],
         "answers": asked.get("answers")}
        for article in articles for paragraph in article["paragraphs"] for asked in paragraph["qas"]
    ]  # fmt: skip


def is_answered(frame: pd.DataFrame) -> bool:
    """Whether the rows are questions on contexts."""
    return all(column in frame.columns for column in COLUMNS)


def answered_table(read: Source, source: str) -> Table:
    """A table of questions on contexts: texts are the two, the label is a list of `{"text", "start"}`, empty for none.

    Raises:
        RequestError: a row without answers (an empty list is one that says there is none), or answers that do not
            stand in the context where they say: how many, and the first one's id.
    """
    frame = read.frame
    ids = list(map(str, frame["id"] if "id" in frame.columns else range(1, len(frame) + 1)))
    texts = [(str(asked), str(context)) for asked, context in zip(frame["question"], frame["context"], strict=True)]
    labels, wrong = [], []
    for name, (_, context), given in zip(ids, texts, frame["answers"], strict=True):
        answers = _answers(given)
        if answers is None:
            raise RequestError(f"label_column: every question of {source!r} must have answers, got none for {name!r}")
        if not all(context.startswith(answer["text"], answer["start"]) for answer in answers):
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


def _answers(given: Any) -> list[dict[str, Any]] | None:
    """Answers as a list of objects, from SQuAD's files or, as two lists, from data sets."""
    try:
        if isinstance(given, dict):
            pairs = zip(list(given["text"]), list(given["answer_start"]), strict=True)
            return [{"text": str(text), "start": int(start)} for text, start in pairs]
        if isinstance(given, list):
            return [{"text": str(answer["text"]), "start": int(answer["answer_start"])} for answer in given]
    except (KeyError, TypeError, ValueError):
        return None
    return None
