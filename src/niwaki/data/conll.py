"""CoNLL columns and CoNLL-U -> sentences of words with a tag each."""

from __future__ import annotations

import re

ENTITY = re.compile(r"[BIOESLU]-.+")
"""A tag of an entity, BIO, IOBES or BILOU; what is in none has `O`."""


def read_conll(text: str, universal: bool, column: str | None) -> tuple[list[tuple[str, ...]], list[list[str]], str]:
    """Sentences as words and their tags, and the name of the column that the tags are from.

    Columns stand apart by tabs, or else by spaces; an empty line ends a sentence; lines of comments and of document
    starts are left out. The word is the first column and the tag the last, or the one that `column` counts to, from 1.
    A `universal` file (CoNLL-U) has ten columns with names of their own: the word is FORM, the tag UPOS.

    Raises:
        ValueError: a line with other columns than the first, no second column, a column that is not there.
    """
    words: list[tuple[str, ...]] = []
    tags: list[list[str]] = []
    word, tag, width, tabs = 1 if universal else 0, -1, 0, False
    if universal:
        tag = _universal(column)
    elif column is not None:
        if not column.isdecimal() or int(column) < 2:
            raise ValueError(f"label_column must count a column from 1, the word's, got {column!r}")
        tag = int(column) - 1
    here: list[tuple[str, str]] = []
    lines = [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]
    known = {_cells(line)[-1].strip() for line in lines if not line.startswith("# ")}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            if here:
                words.append(tuple(a for a, _ in here))
                tags.append([b for _, b in here])
            here = []
            continue
        if line.startswith("-DOCSTART-") or (universal and line.startswith("#")):
            continue
        cells = _cells(line)
        other = (len(cells), "\t" in line) != (width, tabs)
        if line.startswith("# ") and (other or _is_comment(cells[-1].strip(), known, here)):
            continue
        width, tabs = (width, tabs) if width else (len(cells), "\t" in line)
        if len(cells) != width:
            raise ValueError(f"line {number} must have {width} columns as the first has, got {len(cells)}")
        if width < 2:
            raise ValueError(f"line {number} must have a word and a tag, got {line[:40]!r}")
        if tag >= width:
            raise ValueError(f"label_column must be at most {width}, the number of columns, got {column}")
        if universal and not cells[0].isdecimal():  # several words written as one, or one that is not written
            continue
        here.append((cells[word].strip(), cells[tag].strip()))
    return words, tags, column or ("upos" if universal else f"column {width}")


def _cells(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))  # others can be in a word


def _is_comment(last: str, known: set[str], here: list[tuple[str, str]]) -> bool:
    """Whether a line that starts with `# ` is a comment though it has as many columns as others.

    It stands before a sentence, and its last word neither looks like a tag nor is among those `known` from other lines.
    """
    return not here and last not in known and last != "O" and not ENTITY.fullmatch(last)


_UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def _universal(column: str | None) -> int:
    name = (column or "upos").lower()
    if name not in _UNIVERSAL[2:]:
        raise ValueError(f"label_column must be one of {', '.join(_UNIVERSAL[2:])} for CoNLL-U, got {column!r}")
    return _UNIVERSAL.index(name)
