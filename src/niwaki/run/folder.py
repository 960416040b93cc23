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
    with atomic_folder(out, overwrite) as folder:
        before, place = tempfile.tempdir, temporary_beside(folder)
        place.mkdir()
        tempfile.tempdir = str(place)
        try:
            yield folder
        finally:
            tempfile.tempdir = before
