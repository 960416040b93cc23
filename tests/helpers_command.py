"""Words of a command line, and what the command writes."""

from __future__ import annotations

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
