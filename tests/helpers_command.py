"""Words of a command line."""

from __future__ import annotations


def flags_of(**options: object) -> list[str]:
    """Options as flags: `out="x"` is `--out x`, True a flag alone, None none at all."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", *([] if value is True else [str(value)]))]
