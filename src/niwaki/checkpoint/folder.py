"""A folder that is written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from niwaki.errors import RequestError


@contextmanager
def atomic_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder whose content becomes that of `folder` at the end, or vanishes on any exception.

    A new folder gets its name last. One that is there stays the folder it is (a working directory, the end of a link, a
    mount point): its content is replaced.

    Raises:
        RequestError: `folder` exists, is not empty, and `overwrite` was not asked.
    """
    target = Path(folder).resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise RequestError(f"out must be a new or empty folder (or ask for --overwrite), got {str(folder)!r}")
    with new_parents(target):
        inside = target.is_dir()
        try:
            place = target if inside else target.parent
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=place))
        except OSError as error:
            rule = "out must be a folder that can be made"
            raise RequestError(f"{rule}, got {str(folder)!r}: {' '.join(str(error).split())}") from error
        try:
            new = temporary / target.name
            new.mkdir()
            yield new
            if inside:
                _replace_content(target, temporary, new)
            else:
                new.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Make the folders that are missing above `path`; on any exception they vanish again.

    Raises:
        RequestError: they cannot be made.
    """
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = "out must be in a folder that can be made"
            raise RequestError(f"{rule}, got {str(path)!r}: {' '.join(str(error).split())}") from error
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # not made, or no longer empty
                parent.rmdir()
        raise


def _replace_content(target: Path, temporary: Path, new: Path) -> None:
    """Move what is in `new` up into `target`, where `temporary` lies; what stood there is put back if that fails."""
    old = temporary / "old"
    old.mkdir()
    moves = [(path, old / path.name) for path in target.iterdir() if path != temporary]
    moves += [(path, target / path.name) for path in new.iterdir()]
    done: list[tuple[Path, Path]] = []
    try:
        for before, after in moves:
            done.append((before, after))
            before.rename(after)
    except BaseException:
        for before, after in reversed(done):
            with suppress(FileNotFoundError):  # the move that failed
                after.rename(before)
        raise
