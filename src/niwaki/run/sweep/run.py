"""A sweep from its request to the finished folder; given again after it was killed, it goes on."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from niwaki import processes
from niwaki.checkpoint.folder import MARK, atomic_folder
from niwaki.config.sweep import Sweep, parse_pick
from niwaki.errors import RequestError
from niwaki.numerics.threads import threads
from niwaki.progress import job, library_manners, say
from niwaki.report import page
from niwaki.results import read_result
from niwaki.run.folder import activations_in
from niwaki.run.inputs import check_out
from niwaki.run.sweep.place import PAGE, PICKED, RESULT, Place
from niwaki.run.sweep.shared import Shared
from niwaki.run.sweep.side_by_side import do_side_by_side
from niwaki.run.sweep.summary import check_pick, picked, summary


def run_sweep(sweep: Sweep, quiet: bool = False) -> dict[str, Any]:
    """Do all points of a sweep that are not there yet, and write `sweep.json`, one page for all, and what was picked.

    Raises:
        RequestError: the request is wrong, the folder holds another sweep; nothing holds what is to be picked, when all
            else is written. WorkError: the work failed.
    """
    recipe = sweep.recipe
    if processes.count() > 1:
        raise RequestError(
            f"sweep must run in one process (its own are --jobs), got {processes.count()} that were launched"
        )
    read = (recipe.model, recipe.base_model, recipe.train_data, recipe.eval_data)
    check_out(recipe.out, *read, *recipe.task_files)
    if sweep.pick is not None:
        check_pick(parse_pick(sweep.pick))
    place = Place(Path(recipe.out).resolve())
    with library_manners(quiet), threads(recipe.threads):
        shared = Shared(sweep, place, quiet)
        key = shared.key()
        shared.check()
        place.open(sweep, key)
        # What several points look at lasts as long as the sweep, in the folder that is named for it.
        with place.held(), activations_in(recipe.activations_dir, recipe.out):
            if not recipe.resume:
                place.forget()
            with _said_how_to_go_on(sweep, place, quiet):
                _do_what_is_left(sweep, shared, Path(tempfile.gettempdir()))
        results = {point.name: read_result(place.point(point) / "result.json") for point in sweep.points}
        found = summary(sweep, place, key, results)
        name, failed = None, None
        if sweep.pick is not None:
            try:
                name = picked(parse_pick(sweep.pick), found)
            except RequestError as error:
                failed = error
        found = {**found, "pick": sweep.pick, "picked": name}
        place.write(RESULT, json.dumps(found, indent=1, allow_nan=False) + "\n")
        place.write(PAGE, page(list(results.values())))
        _write_picked(place, name)
    if failed is not None:
        raise failed
    return found


@contextmanager
def _said_how_to_go_on(sweep: Sweep, place: Place, quiet: bool) -> Iterator[None]:
    """If the body raises, it is said what is kept, to the person whose sweep has ended."""
    try:
        yield
    except BaseException:
        done = sum(map(place.done, sweep.points))
        kept = f"sweep: {done} of {len(sweep.points)} points are kept"
        say(f"{kept}: the same command goes on from there, with --restart it begins anew", quiet)
        raise


def _write_picked(place: Place, name: str | None) -> None:
    """Copy the folder of a point to where the picked one is; None takes away what was picked before."""
    if name is None:
        shutil.rmtree(place.path / PICKED, ignore_errors=True)
        return
    with atomic_folder(place.path / PICKED, overwrite=True) as folder:
        shutil.copytree(place.path / "points" / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARK))
        for config in folder.glob("adapter/**/adapter_config.json"):  # whose base is beside it, and not in the point
            based = json.loads(config.read_text(encoding="utf-8"))
            based["base_model_name_or_path"] = str(place.path / PICKED)
            config.write_text(json.dumps(based, indent=2) + "\n", encoding="utf-8")


def _do_what_is_left(sweep: Sweep, shared: Shared, temporary: Path) -> None:
    """Do the points that are not there yet."""
    points = [point for point in sweep.points if not shared.place.done(point)]
    if len(points) < len(sweep.points):
        done = len(sweep.points) - len(points)
        say(f"sweep: {done} of {len(sweep.points)} points are done already", shared.quiet)
    shared.prepare(points)
    if sweep.jobs > 1 and len(points) > 1:
        do_side_by_side(sweep, shared.place, points, temporary, shared.quiet)
        return
    with job([1.0] * len(points)) as steps:
        for number, point in enumerate(points):
            if number and point.plan != points[number - 1].plan:
                shutil.rmtree(temporary / str(points[number - 1].plan), ignore_errors=True)
            steps.begin(number)
            shared.do(point, temporary)
