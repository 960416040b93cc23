"""Where a stage keeps what it has done before it is done as a whole; what goes on from there finds it by a hash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_FOLDER: ContextVar[Path | None] = ContextVar("where what has begun is kept", default=None)


@contextmanager
def begun_kept(folder: Path) -> Iterator[None]:
    """Let trainings and solves be kept in `folder`, and go on from what lies there."""
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)


def place_of_begun() -> Path | None:
    """The folder of the innermost `begun_kept` that is open, if any is."""
    return _FOLDER.get()
