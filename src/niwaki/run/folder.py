"""The folder that a command writes, and the temporary files of its work: whoever kills it leaves neither behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niwaki.checkpoint.folder import atomic_folder, temporary_beside
from niwaki.processes import is_first


@contextmanager
def output_folder(out: str, overwrite: bool) -> Iterator[Path]:
    """As `atomic_folder`; what is done meanwhile puts its temporary files beside it, where the next command clears up.

    The first of several processes writes: what the others do goes nowhere.

    Raises:
        RequestError: as `atomic_folder`.
    """
    if not is_first():
        with tempfile.TemporaryDirectory(prefix="niwaki-") as nowhere:
            yield Path(nowhere)
        return
    with atomic_folder(out, overwrite) as folder, temporary_files_in(temporary_beside(folder)):
        yield folder


@contextmanager
def temporary_files_in(place: Path) -> Iterator[None]:
    """While open, temporary files of this process lie in `place`, which is made."""
    before = tempfile.tempdir
    place.mkdir()
    tempfile.tempdir = str(place)
    try:
        yield
    finally:
        tempfile.tempdir = before
