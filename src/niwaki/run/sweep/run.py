"""A sweep from its request to the finished folder; given again after it was killed, it goes on."""

from __future__ import annotations

import json
import multiprocessing
import shutil
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
from niwaki.run.inputs import check_out
from niwaki.run.sweep.alone import Gate
from niwaki.run.sweep.place import PAGE, PICKED, RESULT, Place
from niwaki.run.sweep.shared import Shared
from niwaki.run.sweep.summary import picked, summary


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
    place = Place(Path(recipe.out).resolve())
    with library_manners(quiet), threads(recipe.threads):
        shared = Shared(sweep, place, quiet)
        key = shared.key()
        shared.check()
        place.open(sweep, key)
        left = [point for point in sweep.points if not place.done(point)]
        if len(left) < len(sweep.points):
            say(f"sweep: {len(sweep.points) - len(left)} of {len(sweep.points)} points are done already", quiet)
        shared.prepare(left)
        try:
            if sweep.jobs == 1 or len(left) < 2:
                _do_in_turn(shared, left)
            else:
                _do_side_by_side(sweep, place, left, quiet)
        finally:
            place.forget_targets()
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


def _do_in_turn(shared: Shared, points: list[Point]) -> None:
    """Do points one after the other."""
    with job([1.0] * len(points)) as steps:
        for number, point in enumerate(points):
            if number and point.plan != points[number - 1].plan:
                shared.place.forget_targets()
            steps.begin(number)
            shared.do(point)


def _do_side_by_side(sweep: Sweep, place: Place, points: list[Point], quiet: bool) -> None:
    """Do points in processes of their own, each of which reads model and data once.

    Raises:
        WorkError: a process was killed. What a point raises.
    """
    context = multiprocessing.get_context("spawn")
    jobs = min(sweep.jobs, len(points))
    gate = Gate(context, torch.get_num_threads(), jobs)
    pool = ProcessPoolExecutor(jobs, context, _start, (sweep, place, quiet, gate))
    try:
        for done in [pool.submit(_do, point) for point in points]:
            done.result()
    except BrokenProcessPool as error:
        raise WorkError("a process of the sweep was killed (out of memory? fewer --jobs need less)") from error
    finally:
        pool.shutdown(cancel_futures=True)


_of_process: dict[str, Any] = {}
"""What a process of a pool holds from one point to the next."""


def _start(sweep: Sweep, place: Place, quiet: bool, gate: Gate) -> None:
    with gate.work():
        _of_process.update(shared=Shared(sweep, place, quiet=True), gate=gate)
    _of_process["shared"].quiet = quiet


def _do(point: Point) -> None:
    gate: Gate = _of_process["gate"]
    with library_manners(True), gate.work():
        _of_process["shared"].do(point, gate.alone)
