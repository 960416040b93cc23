"""What a model is worth as it stands, or beside another: `result.json` and a page, nothing pruned."""

from __future__ import annotations

import dataclasses
from typing import Any

from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import longest_input
from niwaki.checkpoint.folder import atomic_folder
from niwaki.config import DEFAULT_LENGTH, Evaluation
from niwaki.data import Table, mean_length
from niwaki.evaluate import check_metric, measures_of
from niwaki.progress import library_manners, say
from niwaki.report import page
from niwaki.results import Result, write_result
from niwaki.run.engines import engine_table, placed
from niwaki.run.exporting import say_bits
from niwaki.run.inputs import Inputs, check_labelled, check_out, read_data, read_inputs
from niwaki.run.likeness import Side, likeness
from niwaki.run.record import Clock, measure, time_in_turn
from niwaki.run.tasks import check_asked, note_means, read_tasks


def run_evaluation(request: Evaluation, quiet: bool = False) -> Result:
    """Measure the model of the request, and `against` in turn with it; adapters are merged.

    Without `against` the model is compared with itself: its speed-up, which should be 1, shows the noise of the timing.

    Raises:
        RequestError: the request is wrong. WorkError: logits that are not finite.
    """
    clock = Clock()
    check_out(request.out, request.model, request.against, request.base_model, request.eval_data, *request.task_files)
    with library_manners(quiet), atomic_folder(request.out, request.overwrite) as folder:
        table = read_data(request, request.eval_data, "validation", quiet) if request.eval_data else None
        tasks = read_tasks(request, quiet)
        inputs = read_inputs(request, quiet=quiet)
        other = inputs
        if request.against:
            other = read_inputs(dataclasses.replace(request, model=request.against), quiet=quiet)
        for side in (inputs, other):
            check_metric(side.model, request.metric)
            check_asked(request, side.model)
        rows, other_rows = (side.rows(table, "validation") if table else [] for side in (inputs, other))
        tests, other_tests = (side.batches(own) if own else None for side, own in ((inputs, rows), (other, other_rows)))
        if tests and not tests.labelled and (request.metric or not request.against) and table:
            _check_measured(table, inputs)  # without, two models can be compared and one not measured
        pruned = merge_(inputs.model)
        dense = merge_(other.model) if request.against else pruned
        for side in {pruned, dense}:
            remove_masks_(side)
        say_bits(request.quantize, quiet)
        after_side, before_side = Side(pruned, inputs, rows), Side(dense, other, other_rows)
        pruned, size, there = placed(after_side, request.engine, request.quantize)
        dense, other_size, other_there = pruned, size, there
        if request.against:
            dense, other_size, other_there = placed(before_side, request.engine, request.quantize)
        if tests:
            length = mean_length(tests)
        else:
            length = request.latency_length or min(DEFAULT_LENGTH, longest_input(pruned))
            say(f"flops and latency: at {length} tokens a row, as there is no eval_data", quiet)
        after = measure(pruned, tests, length, request.metric, size)
        note_means(after, tasks.measure(pruned, inputs))
        before = dict(after)
        if request.against:
            before = measure(dense, other_tests, length, request.metric, other_size)
            note_means(before, tasks.measure(dense, other))
        engines: list[dict[str, Any]] = []
        if there and other_there and request.against and request.quantize != "none":
            rounded, sides = {"dense": other_there, "pruned": there}, {"dense": before_side, "pruned": after_side}
            engines = engine_table(sides, rounded, request.engine, request.quantize, length, request.metric)
        latency = time_in_turn(dense, pruned, request.latency_length or max(1, round(length)), before, after)
        result = Result(
            run=clock.environment(request),
            recipe=dataclasses.asdict(request),
            data=({"eval": inputs.described(table, "validation")} if table else {}) | tasks.to_dict(),
            stages=[],
            dense=before,
            pruned=after,
            latency=latency,
            layers=[],
            warnings=[],
            engine=request.engine if request.quantize == "none" else f"{request.engine} {request.quantize}",
            engines=engines,
            fidelity=likeness(Side(dense, other, other_rows), Side(pruned, inputs, rows)) if request.against else {},
        )
        write_result(result, folder / "result.json")
        (folder / "report.html").write_text(page([result]), encoding="utf-8")
    return result


def _check_measured(table: Table, inputs: Inputs) -> None:
    """Refuse data that nothing is measured by."""
    measures_of(inputs.model)  # refuses a model that nothing can be measured of
    check_labelled(table, "eval_data")
