"""Where temporary files lie: those of the work where a command clears up after it, those of the process where it ends.

Some libraries make a folder the first time that they need one, and remove it at exit: it must not go before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_files_in(place: Path) -> Iterator[Path]:
    """While open, temporary files of this process lie in the folder `place`, which is made."""
    place.mkdir(exist_ok=True)
    with _tempdir(str(place)):
        yield place


@contextmanager
def temporary_files_that_last() -> Iterator[None]:
    """While open, temporary files lie where they do without `temporary_files_in`."""
    with _tempdir(None):
        yield


@contextmanager
def _tempdir(folder: str | None) -> Iterator[None]:
    before = tempfile.tempdir
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
