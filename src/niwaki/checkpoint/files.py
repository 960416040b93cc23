"""The files in which the weights of a model folder lie."""

from __future__ import annotations

import json
from pathlib import Path

from niwaki.checkpoint.library import UNREADABLE, line
from niwaki.errors import RequestError

INDEX = "model.safetensors.index.json"
"""Beside a model's weights where they lie in several files: which holds what."""


def weight_files(folder: Path) -> list[Path]:
    """The files in which the weights of a model folder lie: one, or the shards that its index names.

    Raises:
        RequestError: the index cannot be read, or names a file that is not there.
    """
    if not (folder / INDEX).is_file():
        return [folder / "model.safetensors"]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except UNREADABLE as error:
        rule = f"{INDEX} must name the shard of every weight"
        raise RequestError(f"{rule}, got {str(folder)!r} with a damaged one: {line(error)}") from error
    for name in names:
        if not (folder / name).is_file():
            raise RequestError(f"model must hold every shard that {INDEX} names, got {str(folder)!r} without {name}")
    return [folder / name for name in names]
