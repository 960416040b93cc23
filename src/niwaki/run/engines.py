"""Dense and pruned in an engine, each as it is and rounded: the table that a user chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.anatomy import longest_input
from niwaki.errors import RequestError
from niwaki.evaluate import latencies, measures_of, quality, size_bytes
from niwaki.export import IN_ENGINE
from niwaki.export.onnx.quantize import saturates
from niwaki.export.placed import resident_bytes
from niwaki.progress import say
from niwaki.run.likeness import Side

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Running:
    """A side where an engine runs it: a model that does, its bytes there, and the `file` of what is not PyTorch."""

    side: Side
    model: nn.Module
    size_bytes: int
    file: Path | None = None


def running(side: Side, engine: str, quantize: str = "none") -> Running:
    """A side in `engine`, its weights as `quantize` has them."""
    if engine == "pytorch":
        return Running(side, side.model, size_bytes(side.model))
    there = IN_ENGINE[engine](side.model, side.inputs.tokenizer, quantize)
    return Running(side, there.model, there.size_bytes, there.file)


def engine_table(
    rounded: dict[str, tuple[Running, dict[str, float]]], engine: str, quantize: str, length: float, metric: str | None
) -> Rows:
    """The `engines` of `result.json`: a row for each side as it is in `engine`, and one as `quantize` has it.

    `rounded` are the sides that run there, and their quality. A row has `model`, `quantize`, `quality`, `size_bytes`,
    `memory_bytes`, and `latency` of each way of running it. All rows are timed in turn.
    """
    rows: Rows = []
    there: list[Running] = []
    for name, (side, found) in rounded.items():
        exact, tests = running(side.side, engine), side.side.tests
        before = quality(exact.model, tests, metric) if tests and tests.labelled else {}
        rows += [
            {"model": name, "quantize": "none", "quality": before},
            {"model": name, "quantize": quantize, "quality": found},
        ]
        there += [exact, side]
    models = [each.model for each in there]
    tokens = min(max(1, round(length)), *(longest_input(model) for model in models))
    files = [each.file for each in there if each.file]
    told = zip(there, resident_bytes(files), latencies(models, tokens), strict=True)
    for row, (each, memory, latency) in zip(rows, told, strict=True):
        row |= {"size_bytes": each.size_bytes, "memory_bytes": memory, "latency": latency}
    return rows


def check_drop(there: Running, exact: nn.Module, most: float) -> str:
    """Refuse a rounded model that lost more than the share `most` of its usual metric; what it lost, as a line.

    Raises:
        RequestError: with the figures.
    """
    (metric, *_), _ = measures_of(exact)
    tests = there.side.tests
    assert tests is not None
    before, after = (quality(model, tests)[metric] for model in (exact, there.model))
    worse = after - before if metric in ("perplexity", "pseudo_perplexity") else before - after
    lost = worse / abs(before) if before else 0.0
    if not lost <= most:
        rule = f"max_drop {most:g} is the largest share of {metric} that may be lost"
        raise RequestError(f"{rule}, got {lost:.4f} ({before:.4f} before, {after:.4f} after); round to more bits")
    return f"{metric} {after:.4f}, {before:.4f} before it was rounded"


def say_bits(quantize: str, quiet: bool) -> None:
    """Say so where a weight in int8 has fewer bits."""
    if quantize == "int8" and saturates():
        say("int8: weights have 7 bits, as sums of 8 overflow on a processor without VNNI, such as this one", quiet)
