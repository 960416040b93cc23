"""YAML that a user wrote, read strictly: what it says it says once, and a short file stands for nothing huge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from niwaki.config.text import place_named
from niwaki.errors import RequestError

_DEEPEST = 10
"""Mappings and lists that may lie in each other; a recipe needs three."""


def read_yaml(path: Path, what: str) -> Any:
    """The plain data of a file, which is called `what` (`safe_load`).

    Raises:
        RequestError: no such file, no YAML in UTF-8, aliases, more nesting than anyone needs, a key given twice.
    """
    path = Path(place_named(what, path))
    if not path.is_file():
        raise RequestError(f"{what} must be an existing file, got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
        _check_events(path, what, text)
        _check_keys(path, what, yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{what} {str(path)!r} is not valid YAML in UTF-8: {' '.join(str(error).split())}"
        ) from error


def _check_events(path: Path, what: str, text: str) -> None:
    """Refuse YAML by which a short file stands for a huge one, or keeps the parser busy for hours."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
            rule = f"{what} must write out what it says, without aliases (*) and at most {_DEEPEST} deep"
            raise RequestError(f"{rule}, got line {event.start_mark.line + 1} of {str(path)!r}")


def _check_keys(path: Path, what: str, node: yaml.Node | None) -> None:
    """Refuse a key that stands twice in one mapping: of such the last would win, without a word."""
    seen = set[Any]()
    for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = inner if isinstance(node, yaml.MappingNode) else (None, inner)
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            rule = f"{what} must give every key once"
            raise RequestError(f"{rule}, got {key.value!r} again in line {key.start_mark.line + 1} of {str(path)!r}")
        seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        _check_keys(path, what, value)
