"""What a model is worth as it stands, or beside another: `result.json` and a page, nothing pruned."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from torch import nn

from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import longest_input, supported_task
from niwaki.checkpoint import packed_bytes
from niwaki.config import DEFAULT_LENGTH, Evaluation
from niwaki.data import Table, mean_length
from niwaki.errors import RequestError
from niwaki.evaluate import behaviour, check_length, check_metric, measures_of
from niwaki.numerics.threads import threads
from niwaki.processes import is_first, meet
from niwaki.progress import library_manners, say
from niwaki.report import page
from niwaki.results import Result, write_result
from niwaki.run.engines import (
    Running,
    calibration_of,
    engine_table,
    read_calibration,
    running,
    say_bits,
    say_spared,
)
from niwaki.run.folder import output_folder
from niwaki.run.inputs import Inputs, check_labelled, check_out, read_data, read_inputs
from niwaki.run.likeness import Side, likeness
from niwaki.run.record import Clock, State, measure, note_times, says_nothing, time_in_turn
from niwaki.run.tasks import Tasks, check_asked, note_means, read_tasks


def run_evaluation(request: Evaluation, quiet: bool = False) -> Result:
    """Measure the model of the request, and `against` in turn with it; adapters are merged.

    Without `against` the model is compared with itself: its speed-up, which should be 1, shows the noise of the timing.

    Raises:
        RequestError: the request is wrong. WorkError: logits that are not finite.
    """
    meet()
    clock = Clock()
    data = (request.train_data, request.eval_data, *request.task_files)
    check_out(request.out, request.model, request.against, request.base_model, *data)
    quiet = quiet or not is_first()
    with library_manners(quiet), threads(request.threads), output_folder(request.out, request.overwrite) as folder:
        table = read_data(request, request.eval_data, "validation", quiet) if request.eval_data else None
        tasks = read_tasks(request, quiet)
        pruned_side, dense_side = _sides(request, table, quiet)
        say_bits(request.quantize, quiet)
        seen = read_calibration(request, quiet)
        pruned = _running(request, "pruned" if request.against else "model", pruned_side, seen, quiet)
        dense = _running(request, "dense", dense_side, seen, quiet) if request.against else pruned
        if pruned_side.tests:
            length = mean_length(pruned_side.tests)
        else:
            length = request.latency_length or min(DEFAULT_LENGTH, longest_input(pruned.model))
            say(f"flops and latency: at {length} tokens a row, as there is no eval_data", quiet)
        left = _measured(pruned, length, request.metric, tasks, not quiet)
        came = _measured(dense, length, request.metric, tasks, not quiet) if request.against else left
        before, after = dict(came.record), dict(left.record)
        engines: list[dict[str, Any]] = []
        timed = request.latency_length or max(1, round(length))
        if request.against and request.quantize != "none":
            rounded = {"dense": (dense, before["quality"]), "pruned": (pruned, after["quality"])}
            asked = request.engine, request.quantize, timed, request.metric
            engines, latency = engine_table(rounded, *asked, progress=not quiet)
            note_times(latency, before, after)
        else:
            latency = time_in_turn(dense.model, pruned.model, timed, before, after, not quiet)
        result = Result(
            run=clock.environment(request),
            recipe=dataclasses.asdict(request),
            data=({"eval": pruned_side.inputs.described(table, "validation")} if table else {}) | tasks.to_dict(),
            stages=[],
            dense=before,
            pruned=after,
            latency=latency,
            layers=[],
            warnings=says_nothing(({"the dense model": came} if request.against else {}) | {"the model": left}),
            engine=request.engine if request.quantize == "none" else f"{request.engine} {request.quantize}",
            engines=engines,
            fidelity=_likeness((dense, came), (pruned, left), not quiet) if request.against else {},
            behaviour=behaviour(came.judged, left.judged, table.texts if table else ()) if request.against else {},
        )
        write_result(result, folder / "result.json")
        (folder / "report.html").write_text(page([result]), encoding="utf-8")
    return result


def _sides(request: Evaluation, table: Table | None, quiet: bool) -> tuple[Side, Side]:
    """The model of the request and what it is held against, itself where nothing is named, plain, with their rows.

    Raises:
        RequestError: one of them does not read, or cannot be measured as was asked.
    """
    inputs = read_inputs(request, quiet=quiet)
    other = read_inputs(replace(request, model=request.against), quiet=quiet) if request.against else inputs
    for side in (inputs, other):
        check_metric(side.model, request.metric)
        check_asked(request, side.model)
        check_length(side.model, request.latency_length or 1)
    rows = inputs.rows(table, "validation") if table else []
    if rows and inputs.batches(rows).labelled:
        _check_against(inputs.model, other.model)
    if rows and table and not inputs.batches(rows).labelled and (request.metric or not request.against):
        check_measured(table, inputs)  # without, two models can be compared and one not measured
    pruned = Side(_plain(inputs), inputs, rows)
    if not request.against:
        return pruned, pruned
    return pruned, Side(_plain(other), other, other.rows(table, "validation") if table else [])


def _check_against(model: nn.Module, dense: nn.Module) -> None:
    """Refuse to hold a model against one that is measured by other figures.

    Raises:
        RequestError: naming the metrics of both.
    """
    names, others = (measures_of(each)[0] for each in (model, dense))
    if names != others:
        rule = f"against must be measured as the model is, by {', '.join(names)}"
        raise RequestError(f"{rule}, got {supported_task(dense).what} that is by {', '.join(others)}")


def _running(request: Evaluation, name: str, side: Side, seen: Table | None, quiet: bool) -> Running:
    """A side where the request wants it, rounded by what its own tokenizer makes of the data `seen`."""
    there = running(side, request.engine, request.quantize, calibration_of(request, side.inputs, seen))
    source = request.against if name == "dense" else request.model
    if request.engine == "pytorch" and (stored := packed_bytes(str(source))) is not None:
        there = replace(there, size_bytes=stored)  # as the run that wrote it says
    say_spared(f"{name}, {request.quantize}", there.in_float32, quiet)
    return there


def _plain(inputs: Inputs) -> nn.Module:
    """The model with adapters merged and masks written into the weights."""
    model = merge_(inputs.model)
    remove_masks_(model)
    return model


def _measured(there: Running, length: float, metric: str | None, tasks: Tasks, progress: bool) -> State:
    """A model as measured where it runs, with what tasks say of it."""
    state = measure(there.model, there.side.tests, length, metric, there.size_bytes, progress)
    note_means(state.record, tasks.measure(there.model, there.side.inputs))
    return state


def _likeness(dense: tuple[Running, State], pruned: tuple[Running, State], progress: bool) -> dict[str, float]:
    """How alike they are where they run, and were measured."""
    sides = (replace(there.side, model=there.model, judged=state.judged) for there, state in (dense, pruned))
    return likeness(*sides, progress=progress)


def check_measured(table: Table, inputs: Inputs) -> None:
    """Refuse data that nothing is measured by."""
    measures_of(inputs.model)  # refuses a model that nothing can be measured of
    check_labelled(table, "eval_data")
