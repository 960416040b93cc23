"""The few kinds of failure, each with the exit status the command ends with."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class NiwakiError(Exception):
    """Base of all errors that Niwaki raises on purpose. The message is one line for a person."""

    exit_status = 3


class RequestError(NiwakiError, ValueError):
    """What was asked is wrong: the message names the parameter, the rule, the value and what would be right."""

    exit_status = 2


class WorkError(NiwakiError, RuntimeError):
    """The request was right but the work failed (a non-finite loss, a solve that cannot be damped)."""

    exit_status = 3


def what(error: BaseException) -> str:
    """The class and the message of any error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def limit_of(error: BaseException) -> str | None:
    """What the machine ran out of, and what to do about it; None for any other error.

    PyTorch and safetensors have no class of their own for it on a CPU: their words are what there is. NumPy, by which
    GGUF is written, gives no reason, but how much it wrote.
    """
    said = what(error)
    words = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
    if isinstance(error, MemoryError) or any(word in said for word in words):
        lower = "--batch-size, --max-length or --calibration-samples"
        return f"memory is used up; lower {lower} (--max-memory refuses before any work): {said}"
    full = any(word in said for word in ("No space left on device", "Disk quota exceeded"))
    if full or re.search(r"\d+ requested and \d+ written", said):
        places = "--out, and --activations-dir where that is given"
        return f"the disk is full; free some, or write elsewhere ({places}): {said}"
    return None


def check_kind(parameter: str, value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """Refuse an argument that is no instance of `kinds`.

    Raises:
        RequestError: saying `what` it must be.
    """
    if not isinstance(value, kinds):
        raise RequestError(f"{parameter} must be {what}, got {type(value).__name__}")


def check_choice(parameter: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Raises:
        RequestError: listing the known names and the nearest one.
    """
    names = sorted(known)
    if value in names:
        return value
    nearest = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise RequestError(f"{parameter} must be one of {', '.join(names)}, got {value!r}{hint}")
