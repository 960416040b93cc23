"""The hidden folder beside what is to be written, in which it grows, held by one process at a time.

It has one name for each target, so that a later run finds and clears what a killed one left. A lock that the system
lets go when its process ends (`flock`, by `filelock`) says whether somebody works in it. What lies in its `kept`
outlives a run that fails or is stopped, until one on the same target is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from niwaki.errors import RequestError

NEW, KEPT, TEMPORARY = "new", "kept", "temporary"
READY, OLD, GONE = "ready", "old", "gone"
"""How far a folder that is replaced in place has come, see `niwaki.checkpoint.folder`."""
_LOCK, _HOLDER = "lock", "holder"
_OURS = {NEW, KEPT, TEMPORARY, READY, OLD, GONE, _LOCK, _HOLDER}
_WAIT = 0.2
"""Seconds in which a lock file whose last holder is just taking it away is given up for a new one."""


def place_for(target: Path) -> Path:
    """The working folder of a resolved `target`: beside it, or in it where nothing can be moved in from beside.

    That is a mount point, or a folder whose parent cannot be written.

    Raises:
        RequestError: the system has no such names (which are longer than that of `target`), or lets nobody look there.
    """
    parent = target.parent
    place = parent / f".{target.name}.niwaki"
    try:
        if target.is_dir():
            beside = os.access(parent, os.W_OK) and parent != target and parent.stat().st_dev == target.stat().st_dev
            if not beside:
                return target / ".niwaki.working"
        place.exists()
    except OSError as error:
        rule = "out must leave room for a working folder beside it (.NAME.niwaki)"
        raise RequestError(f"{rule}, got {str(target)!r}: {error.strerror}") from error
    return place


@contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """Hold the working folder of a resolved `target`, empty but for what was kept and what was being replaced.

    At the end it vanishes; if the body raises, all but what is kept.

    Raises:
        RequestError: another process holds it, it is somebody else's, or it cannot be made.
    """
    place = place_for(target)
    with _held(place, target):
        _clear(place, KEPT, READY, OLD, GONE)
        try:
            yield place
        except BaseException:
            _clear(place, *[KEPT] * any((place / KEPT).glob("*")))
            raise
        else:
            _clear(place)


@contextmanager
def _held(place: Path, target: Path) -> Iterator[None]:
    """Make `place` and be the one who works in it; it vanishes at the end if it is empty by then."""
    lock = FileLock(place / _LOCK, timeout=_WAIT, thread_local=False)
    while not lock.is_locked:
        _check_ours(place)
        try:
            place.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # its last holder has just taken it away
                lock.acquire()
        except Timeout as error:
            raise RequestError(
                f"out must be written by one process at a time, got {str(target)!r}, which {_holder(place)} writes"
            ) from error
        except OSError as error:
            rule = "out must be in a folder that can be written"
            raise RequestError(f"{rule}, got {str(target)!r}: {' '.join(str(error).split())}") from error
    try:
        (place / _HOLDER).write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        if not (place / KEPT).exists():
            (place / _HOLDER).unlink(missing_ok=True)
            (place / _LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                place.rmdir()
        lock.release()


def _check_ours(place: Path) -> None:
    """Refuse a working folder that is a link, a file, or holds what Niwaki does not put there."""
    rule = "out must leave the working folder beside it to Niwaki"
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise RequestError(f"{rule}, got {str(place)!r}, which is no folder")
    foreign = sorted({path.name for path in place.iterdir()} - _OURS) if place.is_dir() else []
    if foreign:
        raise RequestError(f"{rule}, got {str(place)!r} with {', '.join(foreign[:3])}")


def left_behind(place: Path, targets: Container[Path]) -> bool:
    """Whether `place` is the working folder beside one of `targets`, and whoever worked in it is gone."""
    name = place.name.removeprefix(".").removesuffix(".niwaki")
    if f".{name}.niwaki" != place.name or place.with_name(name) not in targets:
        return False
    try:
        _check_ours(place)
        with FileLock(place / _LOCK, timeout=0):
            return True
    except (RequestError, OSError):  # of which Timeout is one
        return False


def _holder(place: Path) -> str:
    """The process that holds a working folder, as an error names it."""
    try:
        return f"process {int((place / _HOLDER).read_text(encoding='utf-8'))}"
    except (OSError, ValueError):
        return "another process"


def _clear(place: Path, *spared: str) -> None:
    """Remove what lies in a working folder but for what is `spared` and the lock."""
    for path in place.iterdir():
        if path.name not in (*spared, _LOCK, _HOLDER):
            shutil.rmtree(path, ignore_errors=True)
