"""A frame whose rows are lists of words -> a tagged table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from niwaki.data.table import Source, Table, as_list, is_missing, is_several, recognised_labels, seen
from niwaki.errors import RequestError

WORDS_COLUMN = "tokens"
TAG_COLUMNS = ("tags", "ner_tags", "labels", "pos_tags", "upos")
"""Of a table whose rows are lists of words, with a tag each."""


def is_tagged(frame: pd.DataFrame, text_columns: tuple[str, ...] | None) -> bool:
    """Whether the rows are lists of words: in the one column that is named, or else in `tokens`."""
    column = (text_columns or (WORDS_COLUMN,))[0]
    named = column in frame.columns and isinstance(frame[column], pd.Series) and len(text_columns or ()) < 2
    return named and all(_is_words(value) for value in frame[column].tolist())


def _is_words(value: Any) -> bool:
    return is_several(value) and not isinstance(value, dict) and all(isinstance(word, str) for word in value)


def check_words(frame: pd.DataFrame, shown: str) -> None:
    """Refuse a table of which some rows are lists of words, and others not.

    Raises:
        RequestError: with the first one that is not.
    """
    column = frame[WORDS_COLUMN] if WORDS_COLUMN in frame.columns else None
    are = [_is_words(value) for value in column.tolist()] if isinstance(column, pd.Series) else []
    if any(are) and not all(are):
        rule = f"text_columns: {WORDS_COLUMN!r} of {shown!r} must be a list of words in every row"
        raise RequestError(f"{rule}, got none in row {are.index(False) + 1}")


def tagged_table(read: Source, source: str, text_columns: tuple[str, ...] | None, label_column: str | None) -> Table:
    """A table of words, with a tag each where there is a column of them.

    Raises:
        RequestError: no column of that name, or a row with another number of tags than of words.
    """
    frame, columns = read.frame, tuple(read.frame.columns)
    shown = source if read.split is None else f"{source} ({read.split})"
    (words,) = text_columns or (WORDS_COLUMN,)
    label = label_column if label_column in columns or read.tags is None else "tags"
    if label is None:
        free = tuple(column for column in columns if column != words)
        label = recognised_labels(frame, TAG_COLUMNS, free)
    if label is not None and label not in columns:
        raise RequestError(f"label_column must be among {seen(columns, read.dialect)} in {shown!r}, got {label!r}")
    texts = [tuple(row) for row in frame[words].tolist()]
    labels = [as_list(value) for value in frame[label].tolist()] if label else None
    for number, (text, tags) in enumerate(zip(texts, labels or [], strict=False), 1):
        given = sum(not is_missing(tag) for tag in tags) if isinstance(tags, list) else -1
        if given != len(text) or len(tags) != given:
            found = f"{given} tags" if isinstance(tags, list) else f"a {type(tags).__name__}"
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
