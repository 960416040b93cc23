"""What a model is worth as it stands, or beside another: `result.json` and a page, nothing pruned."""

from __future__ import annotations

import dataclasses

import torch

from niwaki.config import Evaluation
from niwaki.data import mean_length
from niwaki.evaluate import check_metric
from niwaki.folder import atomic_folder
from niwaki.lora import merge_, release_
from niwaki.report import page
from niwaki.results import Result, write_result
from niwaki.run.inputs import check_out, read_data, read_inputs
from niwaki.run.record import Clock, measure, time_in_turn


def run_evaluation(request: Evaluation, quiet: bool = False) -> Result:
    """Measure the model of the request, and `against` in turn with it; adapters are merged.

    Without `against` the model is compared with itself: its speed-up, which should be 1, shows the noise of the timing.

    Raises:
        RequestError: the request is wrong. WorkError: logits that are not finite.
    """
    clock = Clock()
    torch.manual_seed(request.seed)
    check_out(request, request.model, request.against, request.base_model, request.eval_data)
    with atomic_folder(request.out, request.overwrite) as folder:
        table = read_data(request, request.eval_data, "validation", quiet)
        inputs = read_inputs(request, quiet=quiet)
        other = inputs
        if request.against:
            other = read_inputs(dataclasses.replace(request, model=request.against), quiet=quiet)
        for side in (inputs, other):
            check_metric(side.model, request.metric)
        tests, other_tests = (side.batches(side.rows(table, "validation")) for side in (inputs, other))
        pruned = merge_(inputs.model)
        dense = merge_(other.model) if request.against else pruned
        for side in {pruned, dense}:
            release_(side)
        length = mean_length(tests)
        after = measure(pruned, tests, length, request.metric)
        before = measure(dense, other_tests, length, request.metric) if request.against else dict(after)
        latency = time_in_turn(dense, pruned, request.latency_length or max(1, round(length)), before, after)
        result = Result(
            run=clock.environment(request),
            recipe=dataclasses.asdict(request),
            data={"eval": inputs.described(table, "validation")},
            stages=[],
            dense=before,
            pruned=after,
            latency=latency,
            layers=[],
            warnings=[],
        )
        write_result(result, folder / "result.json")
        (folder / "report.html").write_text(page([result]), encoding="utf-8")
    return result
