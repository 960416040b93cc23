"""The few kinds of failure, each with the exit status the command ends with."""

from __future__ import annotations

import difflib
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
