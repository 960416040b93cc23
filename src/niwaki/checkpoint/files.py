"""The files in which the weights of a model folder lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from safetensors import safe_open
from transformers.utils.hub import cached_file

from niwaki.checkpoint.library import UNREADABLE, line, unreadable
from niwaki.errors import RequestError, WorkError

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
        if Path(name).name != name:
            raise RequestError(f"{INDEX} must name files beside it, got {str(folder)!r} with {name!r}")
        if not (folder / name).is_file():
            raise RequestError(f"model must hold every shard that {INDEX} names, got {str(folder)!r} without {name}")
    return [folder / name for name in names]


def packed_bytes(source: str | Path) -> int | None:
    """Bytes of the files of a folder that holds masked weights as bits and kept values; None of any other model.

    Raises:
        RequestError: see `weight_files`.
    """
    try:
        config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
        packed = config["quantization_config"]["packed"]
    except UNREADABLE:
        return None
    return sum(file.stat().st_size for file in weight_files(Path(source))) if packed else None


@dataclass(frozen=True)
class AsRead:
    """The files of weights that a model was read from, which it looks into for as long as it lives.

    Of each, its inode, its size and the time of its last change.
    """

    files: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> AsRead:
        """Those of a folder as they are now; of a Hub id none, whose cache is not written to."""
        folder = Path(name)
        return (
            cls({file: _state(file) for file in weight_files(folder) if file.is_file()}) if folder.is_dir() else cls()
        )

    def check(self) -> None:
        """Refuse to go on once one of them was written to. What was replaced, or is gone, can still be looked into.

        Raises:
            WorkError: naming the file.
        """
        for file, before in self.files.items():
            if file.is_file() and (now := _state(file)) != before and now[0] == before[0]:
                raise WorkError(f"model: {str(file)!r} has changed since it was read")


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def tensor_shapes(name: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model folder or Hub id; its values are not read.

    Raises:
        RequestError: files that are not there, or cannot be read.
    """
    try:
        files = weight_files(Path(name)) if Path(name).is_dir() else _hub_files(str(name))
        return {key: shape for file in files for key, shape in tensor_shapes_in(file).items()}
    except UNREADABLE as error:
        raise unreadable(str(name), error) from error


def tensor_shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118


def _hub_files(name: str) -> list[Path]:
    try:
        return [Path(cast(str, cached_file(name, "model.safetensors")))]
    except OSError:
        index = Path(cast(str, cached_file(name, INDEX)))
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [Path(cast(str, cached_file(name, shard))) for shard in shards]
