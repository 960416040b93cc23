"""Dense and pruned, in float32 and in int8, under ONNX Runtime: quality, bytes of the file, and speed in turn.

    python benchmarks/engines.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

Every speed-up is the median of the ratios of pairs in one run, on as many threads as PyTorch has: the pruned model over
the dense one in float32, in int8, and int8 over float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import niwaki
from common import Bench, arguments, environment, is_done, note, resumed
from niwaki.adapters import merge_
from niwaki.config.engine import QUANTIZATIONS
from niwaki.evaluate import paired, quality, random_inputs
from niwaki.export.onnx.engine import in_onnxruntime

SHAPES = ((32, 64), (1, 16))
"""Batch, length."""


def main() -> None:
    parser = arguments("engines")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5])
    asked = parser.parse_args()
    bench = Bench.of(asked)
    dense = {bits: in_onnxruntime(bench.model(), bench.tokenizer, bits) for bits in QUANTIZATIONS}
    found = {**resumed(asked), **environment(asked), "dense": _described(bench, dense)}
    for seed in asked.seeds:
        for flops in asked.flops:
            run: dict[str, Any] = {"flops": flops, "seed": seed}
            if is_done(found, run):
                continue
            model = bench.model()
            niwaki.prune_(model, niwaki.Structured(flops=flops, seed=seed), list(bench.batches(asked.rows, seed)))
            pruned = {bits: in_onnxruntime(merge_(model), bench.tokenizer, bits) for bits in QUANTIZATIONS}
            run["pruned"] = _described(bench, pruned)
            for rows, length in SHAPES:
                ratios = {f"pruned / dense, {bits}": _speedup(dense[bits][0], pruned[bits][0], rows, length)
                          for bits in QUANTIZATIONS}  # fmt: skip
                ratios |= {f"int8 / float32, {name}": _speedup(sides["none"][0], sides["int8"][0], rows, length)
                           for name, sides in (("dense", dense), ("pruned", pruned))}  # fmt: skip
                run[f"{rows}x{length}"] = ratios
            note(found, run, asked.out)


def _described(bench: Bench, sides: dict[str, tuple[Any, int]]) -> dict[str, Any]:
    """Of each number of bits the quality and the bytes."""
    return {bits: {"quality": quality(there, bench.tests), "bytes": size} for bits, (there, size) in sides.items()}


def _speedup(slower: Any, faster: Any, rows: int, length: int) -> float:
    """How many times as fast as the first the second is on tokens `[rows, length]`."""
    inputs = random_inputs(slower, rows, length)
    with torch.inference_mode():
        return paired(partial(slower, **inputs), partial(faster, **inputs), rounds=25 if rows > 1 else 300).speedup


if __name__ == "__main__":
    main()
