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
from niwaki.errors import RequestError
from niwaki.processes import is_first


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
def output_folder(out: str, overwrite: bool, activations: str | None = None) -> Iterator[Path]:
    """As `atomic_folder`; what is done meanwhile puts its temporary files beside it, where the next command clears up.

    Or into a folder of its own in `activations`, see `activations_in`. The first of several processes writes: what the
    others do goes nowhere.

    Raises:
        RequestError: as `atomic_folder` and `activations_in`.
    """
    if not is_first():
        with tempfile.TemporaryDirectory(prefix="niwaki-") as nowhere, activations_in(activations, out):
            yield Path(nowhere)
        return
    with (
        atomic_folder(out, overwrite) as folder,
        temporary_files_in(temporary_beside(folder)),
        activations_in(activations, out),
    ):
        yield folder


@contextmanager
def temporary_files_in(place: Path) -> Iterator[Path]:
    """While open, temporary files of this process lie in the folder `place`, which is made."""
    before = tempfile.tempdir
    place.mkdir(exist_ok=True)
    tempfile.tempdir = str(place)
    try:
        yield place
    finally:
        tempfile.tempdir = before
