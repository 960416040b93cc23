"""What was fitted of each linear, on disk: a refit that is stopped goes on after it, to the same bytes.

While `begun_kept(folder)` is open, every refit is kept in that folder linear by linear, under a hash of the model as it
came in and of what is asked of its fits: a search for a budget tries several on one model. So one that comes to the
same place again takes them up, whatever was done again before it. Of several processes the first one writes and reads,
and tells the others.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from niwaki.begun import place_of_begun
from niwaki.numerics.digest import digest
from niwaki.processes import Parts, is_first, packed, parts_from_first, unpacked
from niwaki.repair.kept_targets import MOST_OF_DISK

_HASH = 32
"""Bytes of the hash that a file begins with: one that was not written to its end does not count."""


class KeptSolves:
    """What is fitted in one refit of `model`, kept where solves are; nothing elsewhere, or without a model.

    `by` tells it from others of the same model, on the same data; without, nothing is kept either: fits that leave more
    behind than what is put into linears cannot be taken up.
    """

    def __init__(self, model: nn.Module | None, by: str | None) -> None:
        folder, self._place = place_of_begun(), None
        if folder is not None and model is not None and by is not None:
            tensors = sorted((*model.named_parameters(), *model.named_buffers()), key=lambda pair: pair[0])
            words = f"{digest(tensors)} {by}"
            self._place = folder / f"solves-{hashlib.sha256(words.encode()).hexdigest()[:32]}"

    def read(self, name: str) -> list[Parts] | None:
        """What was fitted by this `name`, if it is kept; what is damaged is not."""
        place = self._place
        return None if place is None else _apart(parts_from_first(lambda: _read(place / name))) or None

    def noted(self, name: str, fitted: list[Parts]) -> list[Parts]:
        """The same, kept by this `name` but where it would take too much of the disk or cannot be written."""
        if self._place is None or not is_first():
            return fitted
        said = packed(_together(fitted)).numpy().tobytes()
        with suppress(OSError):
            self._place.mkdir(parents=True, exist_ok=True)
            if len(said) < MOST_OF_DISK * shutil.disk_usage(self._place).free:
                growing = self._place / "growing"
                growing.write_bytes(hashlib.sha256(said).digest() + said)
                growing.replace(self._place / name)
        return fitted


def _read(file: Path) -> Parts:
    """What a file holds; nothing where it is damaged or not there."""
    try:
        text = file.read_bytes()
    except OSError:
        return {}
    if hashlib.sha256(text[_HASH:]).digest() != text[:_HASH]:
        return {}
    return unpacked(torch.frombuffer(bytearray(text[_HASH:]), dtype=torch.uint8))


def _together(fitted: Sequence[Parts]) -> Parts:
    return {f"{place}/{key}": value for place, parts in enumerate(fitted) for key, value in parts.items()}


def _apart(parts: Parts) -> list[Parts]:
    """`_together` undone."""
    fitted: dict[str, Parts] = {}
    for name, value in parts.items():
        place, _, key = name.partition("/")
        fitted.setdefault(place, {})[key] = value
    return [fitted[place] for place in sorted(fitted, key=int)]
