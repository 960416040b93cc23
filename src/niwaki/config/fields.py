"""How a request is described: each field of a config class carries its help text, and checks share these rules."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from niwaki.config.patterns import NByM
from niwaki.errors import RequestError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


FIRST, DATA, BUDGET, METHOD, TRAINING, OUTPUT, MACHINE = "", "Data", "Budget", "Method", "Training", "Output", "Machine"
PANELS = (FIRST, DATA, BUDGET, METHOD, TRAINING, OUTPUT, MACHINE)
"""Where the help of a command shows a flag, from the top; what most people need comes first."""
_MOST_THREADS = 4096
"""More than this no machine runs side by side; far more end the process without a word."""


def option(default: Any, help: str, panel: str = METHOD, off: str | None = None, place: bool = False) -> Any:
    """A dataclass field with a default, and the text and the panel that the help of a command shows for its flag.

    `off` names the flag of its opposite, for one that is True by default; a `place` is the name of a file or folder, or
    of what the Hub has in its place.
    """
    return dataclasses.field(default=default, metadata={"help": help, "panel": panel, "off": off, "place": place})


def required(help: str, place: bool = False) -> Any:
    """A dataclass field that must be given, with the text that the command shows for its flag among the first."""
    return dataclasses.field(metadata={"help": help, "panel": FIRST, "place": place})


def check_at_least(config: Any, least: float, *names: str) -> None:
    """Refuse a field below `least`.

    Raises:
        RequestError: naming the first field that is.
    """
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise RequestError(f"{name} must be at least {least:g}, got {value:g}")


def check_given_at_least(config: Any, least: float, *names: str) -> None:
    """`check_at_least` of those fields that are given.

    Raises:
        RequestError: naming the first field that is below.
    """
    check_at_least(config, least, *(name for name in names if getattr(config, name) is not None))


def check_unused(config: Any, by: str, *names: str) -> None:
    """Refuse a field that was given another value than its default where `by` does not look at it.

    Raises:
        RequestError: naming the first field that was.
    """
    for name in names:
        if getattr(config, name) != defaults(config)[name]:
            raise RequestError(
                f"{name} must not be given with {by}, which does not look at it, got {getattr(config, name)}"
            )


def defaults(config: Any) -> dict[str, Any]:
    """Field -> its default."""
    return {field.name: field.default for field in dataclasses.fields(config)}


def check_sparsity(config: Any) -> None:
    """Refuse a field `sparsity` that is not a fraction of zeros, or not the one that an n:m pattern has.

    Raises:
        RequestError: saying which it must be.
    """
    if not 0.0 <= config.sparsity < 1.0:
        raise RequestError(f"sparsity must be a fraction of zeros in [0, 1), got {config.sparsity:g}")
    found = config.zero_pattern
    if isinstance(found, NByM) and abs(config.sparsity - found.sparsity) > 1e-9:
        raise RequestError(f"sparsity must be {found.sparsity:g} for pattern {found}, got {config.sparsity:g}")


def check_seed(config: Any) -> None:
    """Refuse a seed that PyTorch or NumPy does not take.

    Raises:
        RequestError: saying the range.
    """
    if not 0 <= config.seed < 2**32:
        raise RequestError(f"seed must be a whole number from 0 to {2**32 - 1}, got {config.seed}")


def check_threads(config: Any) -> None:
    """Refuse a given number of threads that no system starts.

    Raises:
        RequestError: saying the range.
    """
    if config.threads is not None and not 1 <= config.threads <= _MOST_THREADS:
        raise RequestError(f"threads must be a whole number from 1 to {_MOST_THREADS}, got {config.threads}")


def check_above_zero(config: Any, *names: str) -> None:
    """Refuse a field that is not a number above 0.

    Raises:
        RequestError: naming the first field that is not.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise RequestError(f"{name} must be above 0, got {value:g}")


def bytes_of(name: str, text: str) -> int:
    """Bytes of the field `name`: `8GiB`, `500 MB` or a plain number.

    Raises:
        RequestError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B?)\s*", text, re.IGNORECASE)
    amount = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 0 < amount < float("inf"):
        raise RequestError(f"{name} must be a size such as 8GiB or 500MB, got {text!r}")
    return int(amount)
