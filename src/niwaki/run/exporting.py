"""A model as a file or folder for those who do not have Niwaki."""

from __future__ import annotations

import dataclasses
from typing import Any

from niwaki.config import Export
from niwaki.config.engine import WRITTEN_FOR
from niwaki.evaluate.plain import plain_model
from niwaki.export import EXPORTS, Calibration
from niwaki.export.gguf.check import trial_perplexities
from niwaki.numerics.threads import threads
from niwaki.progress import library_manners, say
from niwaki.run.engines import calibration_of, check_drop, read_calibration, running, say_bits, say_spared
from niwaki.run.evaluation import check_measured
from niwaki.run.inputs import Inputs, check_out, read_data, read_inputs
from niwaki.run.likeness import Side


def run_export(request: Export, quiet: bool = False) -> None:
    """Write a model in the form that was asked, see `niwaki.export`.

    With `max_drop` nothing is written where the rounded model, in its engine, is worse on `eval_data` than the model as
    it is by more than this share of its usual metric.

    Raises:
        RequestError: the request is wrong. WorkError: what was written does not compute what the model does.
    """
    check_out(request.out, request.model, request.base_model, request.train_data, request.eval_data)
    with library_manners(quiet), threads(request.threads):
        inputs = read_inputs(_in_float32(request), quiet=quiet)
        model, tokenizer = inputs.model, inputs.tokenizer
        calibration = calibration_of(request, inputs, read_calibration(request, quiet))
        _check_drop(request, inputs, calibration, quiet)
        asked: dict[str, Any] = {"quantize": request.quantize} if request.quantize != "none" else {}
        asked |= {"optimize": True} if request.optimize else {}
        asked |= {} if calibration is None else {"calibration": calibration}
        spared = EXPORTS[request.to](model, request.out, tokenizer, request.overwrite, **asked)
        say_spared(request.quantize, len(spared or ()), quiet)
        if request.to == "gguf":
            here, there = trial_perplexities(model, request.out, tokenizer)
            say(f"llama.cpp: perplexity of a trial text {there:.4g}, {here:.4g} in PyTorch", quiet)
    say_bits(request.quantize, quiet)


def _in_float32(request: Export) -> Export:
    """The request, which other engines than PyTorch round from float32 themselves."""
    return request if WRITTEN_FOR[request.to] == "pytorch" else dataclasses.replace(request, dtype="float32")


def _check_drop(request: Export, inputs: Inputs, calibration: Calibration | None, quiet: bool) -> None:
    """Refuse, where `max_drop` is asked, a model that rounding costs more; say what it costs."""
    if request.max_drop is None or request.eval_data is None:
        return
    table = read_data(request, request.eval_data, "validation", quiet)
    rows = inputs.rows(table, "validation")
    if rows and not inputs.batches(rows).labelled:
        check_measured(table, inputs)
    side = Side(plain_model(inputs.model), inputs, rows)
    there = running(side, WRITTEN_FOR[request.to], request.quantize, calibration)
    said = check_drop(there, side.model, request.max_drop)
    say(f"{request.quantize}: {said}", quiet)
