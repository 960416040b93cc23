"""What may stand in a field of a request: the type it is declared with, by the same rule in Python and in recipes."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from niwaki.config.text import check_utf8, place_named
from niwaki.errors import RequestError

MOST = 10**12
"""The largest whole number that may be asked for, of anything: a million times that still fits into 64 bits."""
_RANGED = ("seed", "threads")
"""Whole numbers with a range of their own, which is said instead."""

_STANDS_FOR: dict[type, tuple[type, ...]] = {
    float: (numbers.Real,),
    int: (numbers.Integral,),
    str: (str, os.PathLike),
    tuple: (tuple, list),
}
"""What may be given for a type that is declared. Numbers of NumPy are numbers; truth is none."""


def check_types(config: Any) -> None:
    """Refuse a field of another type than declared, and numbers and text that no recipe can hold.

    Numbers, paths and lists become what a recipe can hold, names of places what is meant by them.

    Raises:
        RequestError: naming the first field.
    """
    kinds = kinds_of(type(config))
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        check_type(name, value, kinds[name])
        value = place_named(name, value) if field.metadata.get("place") and value is not None else _plain(value)
        for each in value if isinstance(value, tuple) else (value,):
            _check_value(name, each, field.metadata.get("help", ""))
        object.__setattr__(config, name, value)


def _check_value(name: str, value: Any, help: str) -> None:
    if isinstance(value, str):
        check_utf8(name, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number, got {value:g} ({help.removesuffix('.')})")
    elif isinstance(value, int) and abs(value) > MOST and name not in _RANGED:
        raise RequestError(f"{name} must be at most {MOST} in size, got {value}")


def check_type(name: str, value: Any, kinds: frozenset[type]) -> None:
    """Refuse a value that is none of `kinds`.

    Raises:
        RequestError: calling it `name`.
    """
    given = (kind for each in kinds for kind in _STANDS_FOR.get(each, (each,)))
    if bool in kinds if isinstance(value, bool) else isinstance(value, tuple(given)):
        return
    names = " or ".join(sorted("nothing" if kind is NoneType else kind.__name__ for kind in kinds))
    raise RequestError(f"{name} must be {names}, got {value!r}")


@cache
def kinds_of(cls: type) -> dict[str, frozenset[type]]:
    """Field of a dataclass -> the types that are declared for it, without what they hold."""
    hints = get_type_hints(cls)
    return {field.name: _kinds(hints[field.name]) for field in dataclasses.fields(cls)}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _kinds(hint: Any) -> frozenset[type]:
    alone = get_origin(hint) in (tuple, Mapping) or not get_args(hint)
    return frozenset(get_origin(kind) or kind for kind in ((hint,) if alone else get_args(hint)))
