"""What a dense model gives on some data, kept on disk while one model after the other is fitted to it.

For every budget it is the same, and to make it is more than half of the forward passes of a refit.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Targets = Iterator[dict[str, Tensor]]
"""For each batch, the outputs `[tokens, out]` of some linears, by part."""

MOST_OF_DISK = 0.25
"""What would take a larger share of the free disk is not kept, and made anew each time."""


@dataclass(frozen=True)
class KeptTargets:
    """Targets of all linears of one model on the same batches, in `folder`, which is there whole or not at all."""

    folder: Path

    @property
    def there(self) -> bool:
        """Whether they were made."""
        return self.folder.is_dir()

    def holds(self, name: str) -> bool:
        """Whether something was kept by this name."""
        return _file(self.folder, name, 0).is_file()

    def read(self, name: str, device: torch.device) -> Targets:
        """What was kept by this name."""
        for number in itertools.count():
            if not _file(self.folder, name, number).is_file():
                return
            yield self.at(name, number, device)

    def at(self, name: str, number: int, device: torch.device) -> dict[str, Tensor]:
        """What was kept by this name of one batch."""
        found = load_file(_file(self.folder, name, number), str(device))
        # Copied to where PyTorch would have put them: how memory is aligned shows in the last bits of sums.
        return {part: target.clone() for part, target in found.items()}

    @contextmanager
    def growing(self) -> Iterator[GrowingTargets]:
        """Where they are noted as they are made; they stay where all went well, none lacks and the disk has room."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="niwaki-", dir=self.folder.parent) as place:
            made = GrowingTargets(Path(place) / "made", MOST_OF_DISK * shutil.disk_usage(place).free)
            made.folder.mkdir()
            yield made
            if made.room >= 0 and made.wanted <= made.names:
                with suppress(OSError):  # another process was first
                    made.folder.rename(self.folder)


@dataclass
class GrowingTargets:
    """Targets on their way to the disk, which may hold `room` more bytes of them."""

    folder: Path
    room: float
    wanted: set[str] = field(default_factory=set)
    """Names without which they are of no use to another model."""
    names: set[str] = field(default_factory=set)

    def noted(self, name: str, targets: Targets) -> Targets:
        """The same targets, kept by this name as they pass."""
        self.names.add(name)
        for number, target in enumerate(targets):
            self.room -= sum(value.nbytes for value in target.values())
            if self.room >= 0:
                path = _file(self.folder, name, number)
                save_file({part: value.contiguous() for part, value in target.items()}, path)
            yield target


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number}.safetensors"
