"""A folder that is written whole or not at all, and that replaces only what Niwaki itself wrote.

Every folder gets a mark, the file `.niwaki`, that lists all that was written into it. A folder without a mark, or with
anything in it that its mark does not list, holds somebody else's work and is refused whatever was asked.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from niwaki.checkpoint.exchange import exchange
from niwaki.checkpoint.working import GONE, KEPT, NEW, OLD, READY, TEMPORARY, left_behind, place_for, working_folder
from niwaki.config.text import place_named
from niwaki.errors import RequestError

MARK = ".niwaki"
"""File in a folder that Niwaki wrote: JSON, `entries` are the paths in the folder, relative to it."""
_NAMED = 3
"""So many entries are named in an error, the rest is counted."""


@contextmanager
def atomic_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder whose content becomes that of `folder` at the end, or vanishes on any exception.

    Whatever kills the process and whenever, `folder` is as it was or as it is to be: a new folder gets its name last,
    one that is there changes places with the new one in one step. Where that cannot be done (a mount point, the working
    directory, a file system that does not know it) its content is moved away and the new one in, and the next call
    finishes what was killed meanwhile.

    Raises:
        RequestError: `folder` is not empty, and `overwrite` was not asked or it holds what Niwaki did not write; at the
            start, and at the end for what was put there in between. Another process writes it.
    """
    target = Path(place_named("out", folder)).resolve()
    if not (place_for(target) / READY).is_dir():
        _check_folder(target, folder, overwrite)
    with new_parents(target), working_folder(target) as place:
        _finish_replacement(target, place)
        _check_folder(target, folder, overwrite)
        new = place / NEW / (target.name or "new")
        new.mkdir(parents=True)
        yield new
        _write_mark(new)
        _give_modes(new)
        _to_disk(new)
        _check_folder(target, folder, overwrite)
        if target.is_dir():
            _replace(target, place, new)
        else:
            new.rename(target)


def kept_beside(new: Path) -> Path:
    """Where what is done so far can be kept while a folder of `atomic_folder` is open: it outlives an exception."""
    return new.parent.parent / KEPT


def temporary_beside(new: Path) -> Path:
    """Where temporary files can lie while a folder of `atomic_folder` is open; it is not made."""
    return new.parent.parent / TEMPORARY


@contextmanager
def atomic_file(path: str | Path, overwrite: bool, is_ours: Callable[[Path], bool], kind: str) -> Iterator[Path]:
    """A new file that becomes `path` at the end, or vanishes on any exception.

    `is_ours` says of a file whether Niwaki wrote it, `kind` names in errors what Niwaki writes there.

    Raises:
        RequestError: `path` is there, and `overwrite` was not asked or it is not such a file; or cannot be written.
            Another process writes it.
    """
    target = Path(place_named("out", path)).resolve()
    if target.exists():
        rule = f"out must be a new file, or {'' if overwrite else 'with --overwrite '}{kind} that Niwaki wrote"
        if not target.is_file():
            raise RequestError(f"{rule}, got {str(path)!r}, which is no file")
        if not is_ours(target):
            raise RequestError(f"{rule}, got {str(path)!r}, which is something else")
        if not overwrite:
            raise RequestError(f"{rule}, got {str(path)!r} without --overwrite")
    with new_parents(target), working_folder(target) as place:
        new = place / NEW / target.name
        new.parent.mkdir()
        yield new
        _to_disk(new.parent)
        new.replace(target)


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


def _check_folder(target: Path, folder: str | Path, overwrite: bool) -> None:
    """Refuse a folder whose content must not be replaced; a working folder in it is no part of it."""
    working = place_for(target)
    if target.exists() and not target.is_dir():
        raise RequestError(f"out must be a new or empty folder, got {str(folder)!r}, which is a file")
    try:
        if not target.is_dir() or all(path == working for path in target.iterdir()):
            return
        foreign = _foreign(target, working)
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


def _foreign(folder: Path, working: Path) -> list[str]:
    """Paths in `folder`, relative to it, that its mark does not list; of a whole folder of such, its own name alone.

    A folder in it that Niwaki has written anew since has a mark of its own, which adds to what is listed. What a
    command left that was killed as it wrote one, a working folder beside it, is nobody's.
    """
    found: list[str] = []

    def look(place: Path, known: set[Path]) -> None:
        known = known | _listed(place)
        for path in sorted(place.iterdir()):
            if path == working:
                continue
            inner = path.is_dir() and not path.is_symlink()
            if path not in known and not left_behind(path, known):
                found.append(f"{path.relative_to(folder).as_posix()}{'/' * inner}")
            elif inner and path in known:
                look(path, known)

    look(folder, set())
    return found


def _listed(folder: Path) -> set[Path]:
    """What the mark of `folder` lists; nothing where there is no mark, or one that cannot be read.

    Raises:
        RequestError: it lists what cannot be in the folder, so Niwaki did not write it.
    """
    mark = folder / MARK
    try:
        entries = [str(entry) for entry in json.loads(mark.read_text(encoding="utf-8"))["entries"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    for entry in entries:
        if Path(entry).is_absolute() or ".." in Path(entry).parts:
            raise RequestError(f"{MARK} must list paths in its folder, got {entry!r} in {str(mark)!r}")
    return {folder / entry for entry in entries} | {mark}


def written_files(folder: Path) -> list[Path]:
    """The files in `folder` that its mark lists, without the mark; none where there is no mark.

    Raises:
        RequestError: one of them is elsewhere: by its name, or by a link.
    """
    files = sorted(path for path in _listed(folder) if path.is_file() and path.name != MARK)
    for path in files:
        if not (real := path.resolve()).is_relative_to(folder.resolve()):
            raise RequestError(f"{MARK} must list files in its folder, got {str(path)!r}, which is {str(real)!r}")
    return files


def _write_mark(folder: Path) -> None:
    entries = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    (folder / MARK).write_text(json.dumps({"entries": entries}, indent=1) + "\n", encoding="utf-8")


def _give_modes(folder: Path) -> None:
    """Let whoever may read new files here read all of `folder`: safetensors (0.8) lets their owner alone."""
    usual = stat.S_IMODE((folder / MARK).stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | usual)


def _to_disk(folder: Path) -> None:
    """Have the system write all files and folders of `folder`, so that they are whole when they get their names."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or (path.is_dir() and os.name == "posix"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _replace(target: Path, place: Path, new: Path) -> None:
    """Let the folder `new` take the place of `target`."""
    if Path.cwd() != target:  # else the shell that started this would be left in a folder that is gone
        with suppress(OSError):
            shutil.copymode(target, new)
            exchange(new, target)
            return
    new.rename(place / READY)
    _finish_replacement(target, place)


def _finish_replacement(target: Path, place: Path) -> None:
    """Replace the content of `target` by what is READY in `place`, going on where a killed process stopped.

    First what stands there moves to OLD, which is then named GONE, then the new comes. A folder without its config is
    no model, so that goes first and comes last. If a move fails, all is put back.
    """
    ready, old, gone = (place / name for name in (READY, OLD, GONE))
    if not ready.is_dir():
        return
    try:
        if not gone.is_dir():
            old.mkdir(exist_ok=True)
            _move_all(target, old, place)
            old.rename(gone)
        _move_all(ready, target, place, config_last=True)
    except BaseException:
        if gone.is_dir():
            _move_all(target, ready, place)
            gone.rename(old)
        _move_all(old, target, place, config_last=True)
        raise


def _move_all(source: Path, target: Path, working: Path, config_last: bool = False) -> None:
    """Move all that is in one folder into another, but for the working folder; what was half moved is moved anew."""
    paths = sorted(source.iterdir(), key=lambda path: (path.name == "config.json") == config_last)
    for path in paths:
        if path != working:
            there = target / path.name
            if there.is_dir() and not there.is_symlink():
                shutil.rmtree(there)
            else:
                there.unlink(missing_ok=True)
            shutil.move(path, there)
