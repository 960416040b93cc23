"""JSON -> a list of objects, one a row: a list of them, or one on each line, whatever the suffix says."""

from __future__ import annotations

import json
from typing import Any


def read_objects(text: str, by_line: bool) -> list[dict[str, Any]]:
    """The rows of a text. `by_line` (.jsonl): one object alone is a row; else it is no list of rows and refused.

    Raises:
        ValueError: no JSON, or JSON of another form; it names the line, or the keys.
    """
    if not text.strip():
        return []
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        found = json.loads(text)
        if isinstance(found, dict) and by_line:
            found = [found]
    except ValueError as error:
        if not by_line and not _is_json(lines[0][1]):
            raise
        if by_line and text.lstrip().startswith("[") and not _is_json(lines[0][1]):
            raise ValueError(f"the list of rows does not end well: {error}") from error
        found = [_of_line(number, line) for number, line in lines]
    if isinstance(found, dict):
        keys = ", ".join(list(map(str, found))[:8])
        inside = next((key for key, value in found.items() if isinstance(value, list)), None)
        hint = f"; write the list that stands under {inside!r} alone" if inside is not None else ""
        raise ValueError(f"the rows must be a list of objects, or an object a line, got one object with {keys}{hint}")
    if not isinstance(found, list):
        raise ValueError(f"the rows must be a list of objects, or an object a line, got {type(found).__name__}")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise ValueError(f"the rows must be a list of objects, or an object a line, got {kind} as row {number}")
    return found


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _of_line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON: {error}") from error
