"""A folder that is written whole or not at all, and that replaces only what Niwaki itself wrote.

Every folder gets a mark, the file `.niwaki`, that lists all that was written into it. A folder without a mark, or with
anything in it that its mark does not list, holds somebody else's work and is refused whatever was asked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from niwaki.errors import RequestError

MARK = ".niwaki"
"""File in a folder that Niwaki wrote: JSON, `entries` are the paths in the folder, relative to it."""
_NAMED = 3
"""So many entries are named in an error, the rest is counted."""


@contextmanager
def atomic_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder whose content becomes that of `folder` at the end, or vanishes on any exception.

    A new folder gets its name last. One that is there stays the folder it is (a working directory, the end of a link, a
    mount point): its content is replaced.

    Raises:
        RequestError: `folder` is not empty, and `overwrite` was not asked or it holds what Niwaki did not write; at the
            start, and at the end for what was put there in between.
    """
    target = Path(folder).resolve()
    _check_folder(target, folder, overwrite)
    with new_parents(target):
        inside = target.is_dir()
        try:
            place = target if inside else target.parent
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=place))
        except OSError as error:
            rule = "out must be a folder that can be made"
            raise RequestError(f"{rule}, got {str(folder)!r}: {' '.join(str(error).split())}") from error
        try:
            new = temporary / (target.name or "new")
            new.mkdir()
            yield new
            _write_mark(new)
            _check_folder(target, folder, overwrite, temporary)
            if target.is_dir():
                _replace_content(target, temporary, new)
            else:
                new.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path, overwrite: bool, is_ours: Callable[[Path], bool], kind: str) -> Iterator[Path]:
    """A temporary file that becomes `path` at the end, or vanishes on any exception.

    `is_ours` says of a file whether Niwaki wrote it, `kind` names in errors what Niwaki writes there.

    Raises:
        RequestError: `path` is there, and `overwrite` was not asked or it is not such a file; or cannot be written.
    """
    target = Path(path).resolve()
    if target.exists():
        rule = f"out must be a new file, or with --overwrite {kind} that Niwaki wrote"
        if not target.is_file():
            raise RequestError(f"{rule}, got {str(path)!r}, which is no file")
        if not is_ours(target):
            raise RequestError(f"{rule}, got {str(path)!r}, which is something else")
        if not overwrite:
            raise RequestError(f"{rule}, got {str(path)!r} without --overwrite")
    with new_parents(target):
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        except OSError as error:
            rule = "out must be a file that can be written"
            raise RequestError(f"{rule}, got {str(path)!r}: {' '.join(str(error).split())}") from error
        try:
            yield temporary / target.name
            (temporary / target.name).replace(target)
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


def _check_folder(target: Path, folder: str | Path, overwrite: bool, temporary: Path | None = None) -> None:
    """Refuse a folder whose content must not be replaced; `temporary` in it is no part of it."""
    if target.exists() and not target.is_dir():
        raise RequestError(f"out must be a new or empty folder, got {str(folder)!r}, which is a file")
    try:
        if not target.is_dir() or all(path == temporary for path in target.iterdir()):
            return
        foreign = _foreign(target, temporary)
    except OSError as error:
        raise RequestError(f"out must be a folder that can be read, got {str(folder)!r}: {error}") from error
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        rule = "out must be a new or empty folder, or with --overwrite one that holds only what Niwaki wrote"
        raise RequestError(f"{rule}, got {str(folder)!r} with {', '.join(foreign[:_NAMED])}{more}")
    if target in Path.cwd().parents:
        raise RequestError(f"out must not be above the working directory, got {str(folder)!r}")
    if not overwrite:
        raise RequestError(f"out must be a new or empty folder (or ask for --overwrite), got {str(folder)!r}")


def _foreign(folder: Path, temporary: Path | None) -> list[str]:
    """Paths in `folder`, relative to it, that its mark does not list; of a whole folder of such, its own name alone.

    A folder in it that Niwaki has written anew since has a mark of its own, which adds to what is listed.
    """
    found: list[str] = []

    def look(place: Path, known: set[Path]) -> None:
        known = known | _listed(place)
        for path in sorted(place.iterdir()):
            if path == temporary:
                continue
            inner = path.is_dir() and not path.is_symlink()
            if path not in known:
                found.append(f"{path.relative_to(folder).as_posix()}{'/' * inner}")
            elif inner:
                look(path, known)

    look(folder, set())
    return found


def _listed(folder: Path) -> set[Path]:
    """What the mark of `folder` lists; nothing where there is no mark, or one that cannot be read."""
    mark = folder / MARK
    try:
        entries = json.loads(mark.read_text(encoding="utf-8"))["entries"]
        return {folder / str(entry) for entry in entries} | {mark}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def written_files(folder: Path) -> list[Path]:
    """The files in `folder` that its mark lists, without the mark; none where there is no mark."""
    return sorted(path for path in _listed(folder) if path.is_file() and path.name != MARK)


def _write_mark(folder: Path) -> None:
    entries = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    (folder / MARK).write_text(json.dumps({"entries": entries}, indent=1) + "\n", encoding="utf-8")


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
