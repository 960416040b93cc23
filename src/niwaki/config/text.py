"""What users call things: text that every file can hold, and names of places on disk."""

from __future__ import annotations

import os
from pathlib import Path

from niwaki.errors import RequestError

_AROUND = 20
"""Characters that are shown on each side of one that cannot be written."""


def unwritable(text: str) -> str | None:
    """The first half of a surrogate pair in a text, with what stands around it; None where all can be written.

    Python has one for each byte of a command line that is no UTF-8; JSON has one where an emoji was cut in two.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[max(0, error.start - _AROUND) : error.start + _AROUND]
    return None


def check_utf8(name: str, text: str) -> None:
    """Refuse text that cannot be written.

    Raises:
        RequestError: calling it `name`.
    """
    if odd := unwritable(text):
        raise RequestError(f"{name} must be text in UTF-8, got {odd!r}")


def place_named(name: str, place: str | os.PathLike[str]) -> str:
    """What is meant by the name of a place: one that begins with `~` lies in a home folder. No Hub id does.

    Raises:
        RequestError: calling it `name`: it is no text in UTF-8, or nobody has that home folder.
    """
    found = os.fspath(place)
    check_utf8(name, found)
    try:
        return str(Path(found).expanduser()) if found.startswith("~") else found
    except RuntimeError as error:
        rule = f"{name} that begins with ~ must lie in a home folder that there is"
        raise RequestError(f"{rule}, got {found!r} (./{found} lies here)") from error
