"""Memory that is freed goes back to the system, where a command asks for that.

The C library of GNU keeps what is freed for later, in pieces of up to 32 MiB that the next tensors do not always fit:
a language model's activations so take several times what is alive of them (`benchmarks/language_memory.py`). Given
back, memory has to be fetched again, so what is timed is timed as it runs in any other program.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM, _MAPPED = -1, -3
"""Parameters of `mallopt`: the free bytes at the top that are kept, and those of a piece that is the system's alone."""
_BACK, _KEPT = 4 * 2**20, 32 * 2**20
"""Bytes from which a piece goes back; those that the library itself comes to when large pieces are freed."""
_CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""How the names of variables begin by which a user says how memory is kept."""

_asked = False


def give_back() -> None:
    """Give freed memory back from now on, unless the user chose otherwise or the C library is another."""
    global _asked
    _asked = not any(name.startswith(_CHOICES) for name in os.environ)
    if _asked:
        _set(_BACK)


@contextmanager
def as_elsewhere() -> Iterator[None]:
    """While open, freed memory is kept as in other programs."""
    if not _asked:
        yield
        return
    _set(_KEPT)
    try:
        yield
    finally:
        _set(_BACK)


def _set(size: int) -> None:
    library = _library()
    if library is not None:
        library.mallopt(_MAPPED, size)
        library.mallopt(_TRIM, 2 * size)


@cache
def _library() -> Any:
    """The C library of this process where it is GNU's, else None."""
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()) or not os.confstr("CS_GNU_LIBC_VERSION"):
        return None
    return ctypes.CDLL(None)
