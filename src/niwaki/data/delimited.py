"""Delimited text (.csv, .tsv) -> a header and rows of strings; how the file was written is found by looking at it.

What stands between columns is the first of the suffix's own character (`,` or a tab) and `, ; tab |` that splits the
header and gives every row as many fields as it. Where none splits the header there is one column.

Quotation marks are read in two ways: as quoting (RFC 4180: a field that begins with a mark ends with one before the
next delimiter or line end, marks inside are doubled) or literally, as GLUE's .tsv are written. A file that only one way
gives whole rows is read in that way. Where both do:

- columns that no tab separates are read as quoted;
- tabs, and the two ways differ in the number of rows: literally (lone marks have swallowed rows that were whole), but a
  single column is refused, since every line of it is a whole row;
- tabs, as many rows: as quoted if something shows that the writer quoted: a quoted name in the header, marks that are
  doubled in a quoted field, or a column with every field quoted; otherwise literally.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_LONGEST_FIELD = 2**31 - 1

Rows = list[list[str]]


@dataclass(frozen=True)
class Dialect:
    """What stands between columns, and whether quotation marks quote."""

    delimiter: str
    quoted: bool

    def __str__(self) -> str:
        return f"{_NAMES[self.delimiter]} between columns, {'quoted' if self.quoted else 'not quoted'}"


def read_delimited(text: str, usual: str) -> tuple[list[str], Rows, Dialect]:
    """The names of the columns, the rows, and how they are written; `usual` is the delimiter that the suffix names.

    Raises:
        ValueError: rows that are not as long as the header, quotation marks that do not fit; it names the first line.
    """
    wrong: ValueError | None = None
    for delimiter in (usual, *(other for other in _NAMES if other != usual)):
        if _columns(text, delimiter) < 2:
            continue
        try:
            rows, quoted = _read(text, delimiter)
        except ValueError as error:
            wrong = wrong or error
        else:
            return rows[0], rows[1:], Dialect(delimiter, quoted)
    if wrong is not None:
        raise wrong
    rows, quoted = _read(text, usual)
    return (rows[0] if rows else []), rows[1:], Dialect(usual, quoted)


def _columns(text: str, delimiter: str) -> int:
    """Columns of the header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    with _long_fields():
        return len(next((row for row in reader if row), []))


def _read(text: str, delimiter: str) -> tuple[Rows, bool]:
    """All rows, the header first, and whether they are read as quoted."""
    if '"' not in text:
        return _parsed(text, delimiter, quoted=False), delimiter != "\t"
    ways: dict[bool, Rows] = {}
    wrong: dict[bool, ValueError] = {}
    for quoted in (True, False):
        try:
            ways[quoted] = _parsed(text, delimiter, quoted)
        except ValueError as error:
            wrong[quoted] = error
    if not ways:
        raise wrong[delimiter != "\t"]
    if len(ways) == 2:
        quoted = delimiter != "\t" or _shows_quoting(ways[True], ways[False])
        return ways[quoted], quoted
    quoted = True in ways
    if not quoted and (line := _escaped(ways[False])):
        raise ValueError(f"row {line} has quotation marks after a backslash: in a quoted field they must be doubled")
    return ways[quoted], quoted


def _parsed(text: str, delimiter: str, quoted: bool) -> Rows:
    """The rows read in one way, each with as many fields as the header; empty lines are left out."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: Rows = []
    with _long_fields():
        try:
            for row in reader:
                if not row or (len(row) == 1 and rows and len(rows[0]) > 1 and not row[0].strip()):
                    continue
                if rows and len(row) != len(rows[0]):
                    kind = "more" if len(row) > len(rows[0]) else "fewer"
                    rule = f"the row that ends on line {reader.line_num} has {kind} fields ({len(row)}) than the header"
                    raise ValueError(f"{rule} ({', '.join(rows[0])}), with {_NAMES[delimiter]} between columns")
                rows.append(row)
        except csv.Error as error:
            raise ValueError(f"the quotation marks on line {reader.line_num} do not fit: {error}") from error
    return rows


def _shows_quoting(quoted: Rows, literal: Rows) -> bool:
    """Whether rows between tabs, whole when read either way, were written with quotes.

    Raises:
        ValueError: nothing shows which.
    """
    if len(quoted) != len(literal):
        if len(literal[0]) > 1:
            return False
        rule = f"its quotation marks may quote ({len(quoted) - 1} rows) or be text ({len(literal) - 1} rows)"
        raise ValueError(f"{rule}: save it as .csv or .jsonl, which say so")
    if quoted[0] != literal[0]:
        return True
    columns = list(zip(zip(*quoted[1:], strict=True), zip(*literal[1:], strict=True), strict=True))
    doubled = any('"' in a and a != b for column in columns for a, b in zip(*column, strict=True))
    all_quoted = any(all(a != b for a, b in zip(*column, strict=True)) for column in columns)
    return doubled or (all_quoted and len(literal) > 2)


def _escaped(literal: Rows) -> int | None:
    """The first row with a field that is quoted by marks with backslashes before those inside."""
    for number, row in enumerate(literal):
        if any(len(x) > 2 and x[0] == x[-1] == '"' and '\\"' in x[1:-1] for x in row):
            return number
    return None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields may be long: `csv` refuses those above 128 KiB otherwise. The limit is one of the whole process."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
