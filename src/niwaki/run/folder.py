"""The folder that a command writes, and the temporary files of its work: whoever kills it leaves neither behind."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from niwaki.checkpoint.folder import atomic_folder, temporary_beside
from niwaki.config import Planning, Recipe, Scoring
from niwaki.errors import RequestError
from niwaki.numerics.threads import threads
from niwaki.processes import is_first
from niwaki.progress import library_manners
from niwaki.temporary import temporary_files_in


@contextmanager
def workplace(request: Recipe | Planning | Scoring, quiet: bool) -> Iterator[Path]:
    """Where a model is observed as a request says: its folder, as `output_folder`, while libraries mind their manners.

    Raises:
        RequestError: as `output_folder` and `activations_in`.
    """
    with (
        library_manners(quiet),
        threads(request.threads),
        output_folder(request.out, request.overwrite) as folder,
        activations_in(request.activations_dir, request.out),
    ):
        yield folder


@contextmanager
def activations_in(folder: str | None, out: str) -> Iterator[None]:
    """While open, temporary files lie in a folder of their own inside `folder`, which vanishes; as before without one.

    What processes left there that were killed as they worked for the same `out` is cleared.

    Raises:
        RequestError: `folder` is none that can be written.
    """
    if folder is None:
        yield
        return
    key = hashlib.sha256(f"{platform.node()} {Path(out).resolve()}".encode()).hexdigest()[:12]
    place = Path(folder).resolve() / f"niwaki-{key}-{os.getpid()}"
    for left in place.parent.glob(f"niwaki-{key}-*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    try:
        place.mkdir()
    except OSError as error:
        rule = "activations_dir must be a folder that can be written"
        raise RequestError(f"{rule}, got {folder!r}: {' '.join(str(error).split())}") from error
    try:
        with temporary_files_in(place):
            yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


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
