"""The functions that names stand for: a tuple in this room is the one list of names, the functions follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from keyword import iskeyword
from types import ModuleType
from typing import Any


def by_name(names: Iterable[str], module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Name -> the function of `module` that is called so, with `_` for `-`, and after a word that Python keeps."""
    return {name: getattr(module, name.replace("-", "_") + "_" * iskeyword(name)) for name in names}
