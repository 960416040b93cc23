"""Dense and pruned in an engine, each as it is and rounded: the table that a user chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.config import Evaluation, Export
from niwaki.config.engine import CALIBRATED
from niwaki.data import Table, sample
from niwaki.errors import RequestError
from niwaki.evaluate import measures_of, quality, size_bytes, time_models
from niwaki.evaluate.quality import lower_is_better
from niwaki.export import IN_ENGINE, Calibration
from niwaki.export.onnx.quantize import saturates
from niwaki.export.placed import resident_bytes
from niwaki.numerics.decimals import reaches
from niwaki.processes import from_first
from niwaki.progress import say
from niwaki.run.inputs import Inputs, read_data
from niwaki.run.likeness import Side

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Running:
    """A side where an engine runs it: a model that does, its bytes there, and the `file` of what is not PyTorch.

    Of its matrices `in_float32` were spared where others were rounded.
    """

    side: Side
    model: nn.Module
    size_bytes: int
    file: Path | None = None
    in_float32: int = 0


def running(side: Side, engine: str, quantize: str = "none", calibration: Calibration | None = None) -> Running:
    """A side in `engine`, its weights as `quantize` has them."""
    if engine == "pytorch":
        return Running(side, side.model, size_bytes(side.model))
    there = IN_ENGINE[engine](side.model, side.inputs.tokenizer, quantize, calibration)
    return Running(side, there.model, there.size_bytes, there.file, there.in_float32)


def read_calibration(request: Evaluation | Export, quiet: bool) -> Table | None:
    """The data that a rounding is to look at, None where there are none."""
    return read_data(request, request.train_data, "train", quiet) if request.train_data else None


def calibration_of(request: Evaluation | Export, inputs: Inputs, table: Table | None) -> Calibration | None:
    """Rows of these data as a model reads them, and what rounding may cost on them."""
    if table is None:
        return None
    rows = sample(inputs.rows(table, "train"), request.calibration_samples, request.seed)
    return Calibration(list(inputs.batches(rows)), request.max_divergence)


def engine_table(
    rounded: dict[str, tuple[Running, dict[str, float]]],
    engine: str,
    quantize: str,
    length: int,
    metric: str | None,
    *,
    progress: bool = False,
) -> tuple[Rows, dict[str, Any]]:
    """The `engines` of `result.json`: a row for each side as it is in `engine`, and one as `quantize` has it.

    Beside it the `latency` of the rounded two. `rounded` are the sides that run there, dense first, and their quality.
    A row has `model`, `quantize`, `quality`, `size_bytes`, `memory_bytes`, and `latency` of each way of running it; a
    rounded one also how many of its matrices stay `in_float32`. All rows are timed in turn, on texts of `length`
    tokens.
    """
    rows: Rows = []
    there: list[Running] = []
    for name, (side, found) in rounded.items():
        exact, tests = running(side.side, engine), side.side.tests
        before = quality(exact.model, tests, metric, progress) if tests and tests.labelled else {}
        rows += [
            {"model": name, "quantize": "none", "quality": before},
            {"model": name, "quantize": quantize, "quality": found, "in_float32": side.in_float32},
        ]
        there += [exact, side]
    models = [each.model for each in there]
    files = [each.file for each in there if each.file]

    def taken() -> tuple[list[int], list[dict[str, Any]], dict[str, Any]]:
        timed = time_models(models, length, longer=True, progress=progress)
        return resident_bytes(files), timed.each(), timed.pair(1, 3)

    memories, latencies, of_rounded = from_first(taken)
    for row, each, memory, latency in zip(rows, there, memories, latencies, strict=True):
        row |= {"size_bytes": each.size_bytes, "memory_bytes": memory, "latency": latency}
    return rows, of_rounded


def check_drop(rounded: nn.Module, exact: Side, most: float, *, progress: bool = False) -> str:
    """Refuse a rounded model that lost more than the share `most` of its usual metric; what it lost, as a line.

    Raises:
        RequestError: with the figures.
    """
    tests = exact.tests
    assert tests is not None
    found = quality(exact.model, tests, progress=progress)
    metric = next(name for name in measures_of(exact.model)[0] if name in found)
    before, after = found[metric], quality(rounded, tests, progress=progress)[metric]
    worse = after - before if lower_is_better(metric) else before - after
    lost = worse / abs(before) if before else 0.0
    if not reaches(most, lost):
        rule = f"max_drop {most:g} is the largest share of {metric} that may be lost"
        raise RequestError(f"{rule}, got {lost:.4f} ({before:.4f} before, {after:.4f} after); round to more bits")
    return f"{metric} {after:.4f}, {before:.4f} before it was rounded"


def say_spared(name: str, count: int, quiet: bool) -> None:
    """Say so where matrices of the model `name` stay in float32."""
    if count:
        say(f"{name}: {count} matrices stay in float32, which in int8 cost more than max_divergence", quiet)


def say_bits(quantize: str, quiet: bool) -> None:
    """Say so where a weight in int8 has fewer bits."""
    if quantize in CALIBRATED and saturates():
        say("int8: weights have 7 bits, as sums of 8 overflow on a processor without VNNI, such as this one", quiet)
