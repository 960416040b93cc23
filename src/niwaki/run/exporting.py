"""A model as a file or folder for those who do not have Niwaki."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from niwaki.checkpoint.folder import temporary_beside
from niwaki.config import Export
from niwaki.config.engine import WRITTEN_FOR
from niwaki.evaluate.plain import plain_model
from niwaki.export import FILLS, OF_EXPORT, SINGLE_FILES
from niwaki.export.destination import place_of
from niwaki.export.gguf.check import trial_perplexities
from niwaki.numerics.threads import threads
from niwaki.progress import library_manners, say
from niwaki.run.engines import calibration_of, check_drop, read_calibration, say_bits, say_spared
from niwaki.run.evaluation import check_measured
from niwaki.run.inputs import Inputs, check_out, read_data, read_inputs
from niwaki.run.likeness import Side
from niwaki.surgery.shapes import loads_plainly
from niwaki.temporary import temporary_files_in


def run_export(request: Export, quiet: bool = False) -> None:
    """Write a model in the form that was asked, see `niwaki.export`.

    With `max_drop` nothing is written where the rounded model, in its engine, is worse on `eval_data` than the model as
    it is by more than this share of its usual metric.

    Raises:
        RequestError: the request is wrong. WorkError: what was written does not compute what the model does.
    """
    check_out(request.out, request.model, request.base_model, request.train_data, request.eval_data)
    with library_manners(quiet), threads(request.threads), _place(request) as place:
        inputs = read_inputs(_in_float32(request), quiet=quiet)
        model, tokenizer = inputs.model, inputs.tokenizer
        side = _measured_side(request, inputs, quiet)
        calibration = calibration_of(request, inputs, read_calibration(request, quiet))
        asked: dict[str, Any] = {"quantize": request.quantize} if request.quantize != "none" else {}
        asked |= {"optimize": True} if request.optimize else {}
        asked |= {} if calibration is None else {"calibration": calibration}
        spared = FILLS[request.to](model, place, tokenizer, **asked) or []
        say_spared(request.quantize, len(spared), quiet)
        if request.to == "merged" and not loads_plainly(model):
            say("merged: its layers are not as a plain config says, so it loads after `import niwaki` alone", quiet)
        if side is not None and request.max_drop is not None:
            rounded = OF_EXPORT[request.to](side.model, place, spared).model
            say(f"{request.quantize}: {check_drop(rounded, side, request.max_drop, progress=not quiet)}", quiet)
        if request.to == "gguf":
            here, there = trial_perplexities(model, place, tokenizer)
            say(f"llama.cpp: perplexity of a trial text {there:.4g}, {here:.4g} in PyTorch", quiet)
    say_bits(request.quantize, quiet)


@contextmanager
def _place(request: Export) -> Iterator[Path]:
    """Where the export grows, refused before any work; temporary files lie beside it."""
    with (
        place_of(request.out, request.overwrite, SINGLE_FILES.get(request.to)) as place,
        temporary_files_in(temporary_beside(place)),
    ):
        yield place


def _in_float32(request: Export) -> Export:
    """The request, which other engines than PyTorch round from float32 themselves."""
    return request if WRITTEN_FOR[request.to] == "pytorch" else dataclasses.replace(request, dtype="float32")


def _measured_side(request: Export, inputs: Inputs, quiet: bool) -> Side | None:
    """The model as it is with the rows that `max_drop` is measured on, None where it is not asked.

    Raises:
        RequestError: data that nothing can be measured by.
    """
    if request.max_drop is None or request.eval_data is None:
        return None
    table = read_data(request, request.eval_data, "validation", quiet)
    rows = inputs.rows(table, "validation")
    if rows and not inputs.batches(rows).labelled:
        check_measured(table, inputs)
    return Side(plain_model(inputs.model), inputs, rows)
