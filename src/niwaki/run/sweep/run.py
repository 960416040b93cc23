"""A sweep from its request to the finished folder; given again after it was killed, it goes on."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from niwaki import processes
from niwaki.checkpoint.folder import MARK, atomic_folder
from niwaki.config.sweep import Point, Sweep, parse_pick
from niwaki.errors import RequestError, WorkError
from niwaki.numerics.threads import threads
from niwaki.progress import job, library_manners, say
from niwaki.report import page
from niwaki.results import read_result
from niwaki.run.folder import activations_in
from niwaki.run.inputs import check_out
from niwaki.run.sweep.alone import Gate
from niwaki.run.sweep.place import PAGE, PICKED, RESULT, Place
from niwaki.run.sweep.shared import Shared
from niwaki.run.sweep.summary import check_pick, picked, summary
from niwaki.temporary import temporary_files_that_last


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


def _write_picked(place: Place, name: str | None) -> None:
    """Copy the folder of a point to where the picked one is; None takes away what was picked before."""
    if name is None:
        shutil.rmtree(place.path / PICKED, ignore_errors=True)
        return
    with atomic_folder(place.path / PICKED, overwrite=True) as folder:
        shutil.copytree(place.path / "points" / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARK))


def _do_what_is_left(sweep: Sweep, shared: Shared, temporary: Path) -> None:
    """Do the points that are not there yet."""
    points = [point for point in sweep.points if not shared.place.done(point)]
    if len(points) < len(sweep.points):
        done = len(sweep.points) - len(points)
        say(f"sweep: {done} of {len(sweep.points)} points are done already", shared.quiet)
    shared.prepare(points)
    if sweep.jobs > 1 and len(points) > 1:
        _do_side_by_side(sweep, shared.place, points, temporary, shared.quiet)
        return
    with job([1.0] * len(points)) as steps:
        for number, point in enumerate(points):
            if number and point.plan != points[number - 1].plan:
                shutil.rmtree(temporary / str(points[number - 1].plan), ignore_errors=True)
            steps.begin(number)
            shared.do(point, temporary)


def _do_side_by_side(sweep: Sweep, place: Place, points: list[Point], temporary: Path, quiet: bool) -> None:
    """Do points in processes of their own, each of which reads model and data once.

    Raises:
        WorkError: a process was killed. What a point raises.
    """
    context = multiprocessing.get_context("spawn")
    jobs = min(sweep.jobs, len(points))
    with temporary_files_that_last():  # multiprocessing shares through files where there is no /dev/shm
        gate = Gate(context, torch.get_num_threads(), jobs)
    pool = ProcessPoolExecutor(jobs, context, _start, (sweep, place, temporary, quiet, gate))
    try:
        for done in [pool.submit(_do, point) for point in points]:
            done.result()
    except BrokenProcessPool as error:
        raise WorkError("a process of the sweep was killed (out of memory? fewer --jobs need less)") from error
    finally:
        pool.shutdown(cancel_futures=True)


_of_process: dict[str, Any] = {}
"""What a process of a pool holds from one point to the next."""


def _start(sweep: Sweep, place: Place, temporary: Path, quiet: bool, gate: Gate) -> None:
    tempfile.tempdir = str(temporary)
    with gate.work():
        _of_process.update(shared=Shared(sweep, place, quiet=True), temporary=temporary, gate=gate)
    _of_process["shared"].quiet = quiet


def _do(point: Point) -> None:
    gate: Gate = _of_process["gate"]
    with library_manners(True), gate.work():
        _of_process["shared"].do(point, _of_process["temporary"], gate.alone)
