"""Two folders change places in one step, where the system can do that: no moment sees one of them half replaced.

Linux: `renameat2` with RENAME_EXCHANGE (since 3.15; ext4, xfs, btrfs, tmpfs). macOS: `renamex_np` with
RENAME_SWAP (APFS). Python has neither.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_EXCHANGE = 2
"""RENAME_EXCHANGE, and RENAME_SWAP."""
_HERE = -100
"""AT_FDCWD of Linux: paths are from the working directory."""


def exchange(one: Path, other: Path) -> None:
    """Give each of two paths of one file system what the other was.

    Raises:
        OSError: the system, or this file system, cannot do that; or one of them is a mount point.
    """
    names = (os.fsencode(one), os.fsencode(other))
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _EXCHANGE)
    else:
        raise OSError("folders cannot change places on this system")
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
