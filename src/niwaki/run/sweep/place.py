"""The folder of a sweep: whose it is, what of it is done, where what is shared lies.

`sweep.yaml` says what was asked, `key.json` what all points follow from, part by part (see `niwaki.run.key`): a sweep
only goes on where all of it is the same. A point, a plan, and the dense model's record are there whole or not at all,
so what is there is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from niwaki.checkpoint.folder import atomic_file, atomic_folder
from niwaki.checkpoint.working import TEMPORARY, place_for, working_folder
from niwaki.config.sweep import Point, Sweep, sweep_to_dict
from niwaki.errors import RequestError
from niwaki.methods.plan import PLAN
from niwaki.temporary import temporary_files_in

KEY, REQUEST = "key.json", "sweep.yaml"
RESULT, PAGE, PICKED = "sweep.json", "report.html", "picked"


@dataclass(frozen=True)
class Place:
    """The folder `path` of a sweep."""

    path: Path

    def open(self, sweep: Sweep, key: dict[str, str]) -> None:
        """Make the folder, or go on with what is done in it.

        Raises:
            RequestError: it holds another sweep, or anything else, and `overwrite` was not asked or cannot be done.
        """
        before = self._key()
        if before == key and not sweep.recipe.overwrite:
            return
        if before is not None and not sweep.recipe.overwrite:
            other = ", ".join(name for name in key if before.get(name) != key[name])
            rule = "out must be a new folder or that of this very sweep (or ask for --overwrite)"
            raise RequestError(f"{rule}, got {str(self.path)!r} of another: {other or 'all'} differ")
        # The mark of the folder lists all that will be written, so that --overwrite knows it for its own.
        with atomic_folder(self.path, sweep.recipe.overwrite) as new:
            (new / REQUEST).write_text(yaml.safe_dump(sweep_to_dict(sweep), sort_keys=False), encoding="utf-8")
            (new / KEY).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
            for name in (RESULT, PAGE):
                (new / name).touch()
            folders = [f"points/{point.name}" for point in sweep.points]
            for name in (*folders, *(f"plans/{point.plan}" for point in sweep.points if point.plan), PICKED):
                (new / name).mkdir(parents=True, exist_ok=True)
        self.forget()

    def forget(self) -> None:
        """Take away all that is done."""
        for name in (RESULT, PAGE):
            (self.path / name).unlink(missing_ok=True)
        for name in ("points", "plans", PICKED):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _key(self) -> dict[str, str] | None:
        try:
            found = json.loads((self.path / KEY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def point(self, point: Point) -> Path:
        """The folder of a point."""
        return self.path / "points" / point.name

    def done(self, point: Point) -> bool:
        """Whether a point is there."""
        return (self.point(point) / "result.json").is_file()

    def clear(self, point: Point) -> None:
        """Take away what a process that was killed left where a point is to be."""
        if not self.done(point):
            for left in (self.point(point), place_for(self.point(point))):
                shutil.rmtree(left, ignore_errors=True)

    def plan(self, name: str) -> Path:
        """The folder of a plan."""
        return self.path / "plans" / name

    def has_plan(self, name: str) -> bool:
        """Whether a plan is there; takes away what a process that was killed left in its place."""
        there = (self.plan(name) / PLAN).is_file()
        if not there:
            shutil.rmtree(self.plan(name), ignore_errors=True)
        return there

    @contextmanager
    def held(self) -> Iterator[Path]:
        """While open, no other command writes here; the folder of temporary files, which goes whatever ends this one.

        Raises:
            RequestError: another process works here.
        """
        with working_folder(self.path) as beside, temporary_files_in(beside / TEMPORARY) as temporary:
            yield temporary

    def write(self, name: str, text: str) -> None:
        """Write one of the files of the sweep, whole or not at all."""
        with atomic_file(self.path / name, True, lambda path: True, "a file") as unfinished:
            unfinished.write_text(text, encoding="utf-8")
