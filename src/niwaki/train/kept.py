"""A training on disk as it was after one of its steps: one that is stopped goes on from there, to the same bytes.

While `begun_kept(folder)` is open, every training is kept in that folder after each tenth of its steps, under a
hash of what its bytes follow from: the model as it came in and the options. So one that comes to the same place again
takes it up, whatever was done again before it. It is safetensors and JSON; `Accelerator.save_state` pickles. Of several
processes the first one writes, and all go on if each can read the same there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from niwaki.begun import place_of_begun
from niwaki.errors import NiwakiError
from niwaki.numerics.digest import digest
from niwaki.processes import for_all, from_first, is_first
from niwaki.progress import say
from niwaki.train.course import Course

_TENSORS, _NOTES, _GROWING = "training.safetensors", "training.json", "growing"


@dataclass(frozen=True, eq=False)
class _Found:
    """A training in its `folder`: what `Course` gave, and the hash of each file."""

    folder: Path
    tensors: dict[str, Tensor]
    course: dict[str, Any]
    files: dict[str, str]


class Keeper:
    """Keeps one training of `model` that was `asked` so, where trainings are kept; nothing elsewhere.

    It is made before the first step, and before anything is put beside the training.
    """

    def __init__(self, model: nn.Module, asked: dict[str, Any], quiet: bool) -> None:
        folder, self._quiet = place_of_begun(), quiet
        self._place: Path | None = None
        if folder is not None:
            tensors = digest([*model.named_parameters(), *model.named_buffers()])
            words = json.dumps([tensors, asked], sort_keys=True)
            self._place = folder / hashlib.sha256(words.encode()).hexdigest()[:32]

    def restore_(self, course: Course) -> None:
        """Let `course` be as it was when it was kept last; what is damaged does not count."""
        if self._place is None:
            return
        found = self._latest(self._place)
        read = None if found is None else found.files
        first_read = from_first(lambda: read)
        if not for_all(read == first_read):
            say("what was kept of a training cannot be used: not every process can read it", self._quiet)
        elif found is not None:
            if course.beside is not None:
                course.beside.restore_(found.folder)
            course.restore_(found.tensors, found.course)
            say(f"training: going on after step {course.done}, which is kept", self._quiet)

    def _latest(self, place: Path) -> _Found | None:
        """What was kept last, if anything can be used."""
        folder = max(place.glob("[0-9]*"), key=lambda path: int(path.name), default=None)
        if folder is None:
            return None
        try:
            notes = json.loads((folder / _NOTES).read_text("utf-8"))
            if notes["files"] != _digests(folder):
                raise ValueError("it is not what was written")
            return _Found(folder, load_file(folder / _TENSORS), notes["course"], notes["files"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            say(f"what was kept of a training cannot be used: {error}", self._quiet)
            return None

    def save(self, course: Course) -> None:
        """Keep `course` in the place of what was kept; what cannot be, on a full disk say, is said and left."""
        if self._place is None:
            return
        growing, place = self._place / _GROWING, self._place / str(course.done)
        tensors = course.tensors()
        if not is_first():
            return
        try:
            shutil.rmtree(growing, ignore_errors=True)
            growing.mkdir(parents=True)
            save_file(tensors, growing / _TENSORS)
            if course.beside is not None:
                course.beside.save(growing)
            notes = {"course": course.plain(), "files": _digests(growing)}
            (growing / _NOTES).write_text(json.dumps(notes), encoding="utf-8")
            growing.rename(place)
        except (OSError, SafetensorError, NiwakiError) as error:
            shutil.rmtree(growing, ignore_errors=True)
            say(f"step {course.done} is not kept: {' '.join(str(error).split())}", self._quiet)
            return
        for other in self._place.iterdir():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    """The hash of each file of a folder but the notes, by name."""
    files = (path for path in folder.iterdir() if path.name != _NOTES)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
