"""The folder that a command writes, and the temporary files of its work: whoever kills it leaves neither behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niwaki.checkpoint.folder import atomic_folder, temporary_beside


@contextmanager
def output_folder(out: str, overwrite: bool) -> Iterator[Path]:
    """As `atomic_folder`; what is done meanwhile puts its temporary files beside it, where the next command clears up.

    Raises:
        RequestError: as `atomic_folder`.
    """
    with atomic_folder(out, overwrite) as folder, temporary_files_in(temporary_beside(folder)):
        yield folder


@contextmanager
def temporary_files_in(place: Path) -> Iterator[Path]:
    """While open, temporary files of this process lie in the new folder `place`."""
    before = tempfile.tempdir
    place.mkdir()
    tempfile.tempdir = str(place)
    try:
        yield place
    finally:
        tempfile.tempdir = before
