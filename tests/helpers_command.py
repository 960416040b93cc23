"""Words of a command line, what the command writes, and how a launcher starts it several times."""

from __future__ import annotations

import socket
from pathlib import Path

MEASURED = ("result.json", "README.md", "report.html")
"""Files that hold times."""


def flags_of(**options: object) -> list[str]:
    """Options as flags: `out="x"` is `--out x`, True a flag alone, None none at all."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", *([] if value is True else [str(value)]))]


def contents(folder: Path) -> dict[str, bytes]:
    """File -> bytes of what a command wrote, but of files that hold times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in MEASURED}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launched_as(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment that a launcher gives one of `count` processes, which meet at a port of this machine."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in (where | {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}).items()}
