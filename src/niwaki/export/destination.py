"""Where an export is written: a new folder, or one file where its name says so; whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from niwaki.checkpoint.folder import atomic_file, atomic_folder


@dataclass(frozen=True)
class SingleFile:
    """The one file that an export may be: how its name ends, what it is, and whether Niwaki wrote one that is there."""

    suffix: str
    kind: str
    is_ours: Callable[[Path], bool]


@contextmanager
def place_of(path: str | Path, overwrite: bool, single: SingleFile | None = None) -> Iterator[Path]:
    """A new folder, or a name for a new file, that becomes `path` at the end.

    Raises:
        RequestError: as `niwaki.checkpoint.folder.atomic_folder` and `atomic_file`.
    """
    if single is not None and Path(path).suffix == single.suffix:
        with atomic_file(path, overwrite, single.is_ours, single.kind) as file:
            yield file
    else:
        with atomic_folder(path, overwrite) as folder:
            yield folder
