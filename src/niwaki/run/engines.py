"""Dense and pruned in an engine, each as it is and rounded: the table that a user chooses from."""

from __future__ import annotations

from typing import Any

from torch import nn

from niwaki.anatomy import longest_input
from niwaki.evaluate import latencies, quality, size_bytes
from niwaki.export import IN_ENGINE
from niwaki.export.placed import Placed, resident_bytes
from niwaki.run.likeness import Side


def placed(side: Side, engine: str, quantize: str) -> tuple[nn.Module, int, Placed | None]:
    """The model of a side where `engine` runs it, its bytes there, and how it lies there if that is not PyTorch."""
    if engine == "pytorch":
        return side.model, size_bytes(side.model), None
    there = IN_ENGINE[engine](side.model, side.inputs.tokenizer, quantize)
    return there.model, there.size_bytes, there


def engine_table(
    sides: dict[str, Side], rounded: dict[str, Placed], engine: str, quantize: str, length: float, metric: str | None
) -> list[dict[str, Any]]:
    """The `engines` of `result.json`: a row for each side as it is in `engine`, and one as `quantize` has it.

    `rounded` are the sides as they were placed already. A row has `model`, `quantize`, `quality`, `size_bytes`,
    `memory_bytes`, and `latency` of each way of running it. All rows are timed in turn.
    """
    rows, there = [], []
    for name, side in sides.items():
        for bits in ("none", quantize):
            there.append(rounded[name] if bits == quantize else IN_ENGINE[engine](side.model, side.inputs.tokenizer))
            tests = side.inputs.batches(side.rows) if side.rows else None
            row: dict[str, Any] = {"model": name, "quantize": bits}
            rows.append(row | {"quality": quality(there[-1].model, tests, metric) if tests and tests.labelled else {}})
    models = [each.model for each in there]
    tokens = min(max(1, round(length)), *(longest_input(model) for model in models))
    told = zip(there, resident_bytes([each.file for each in there]), latencies(models, tokens), strict=True)
    for row, (each, memory, latency) in zip(rows, told, strict=True):
        row |= {"size_bytes": each.size_bytes, "memory_bytes": memory, "latency": latency}
    return rows
