"""Dense and pruned, in float32 and in int8, under ONNX Runtime: quality, bytes of the file, and speed in turn.

    python benchmarks/engines.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

Every speed-up is the median of the ratios of pairs in one run, on as many threads as PyTorch has: the pruned model over
the dense one in float32, in int8, and int8 over float32.
"""

from __future__ import annotations

from typing import Any

import niwaki
from common import Bench, arguments, environment, is_done, note, resumed, speedups
from niwaki.adapters import merge_
from niwaki.config.engine import ROUNDINGS
from niwaki.evaluate import quality
from niwaki.export import in_onnxruntime
from niwaki.export.placed import Placed

BITS = ROUNDINGS["onnxruntime"]


def main() -> None:
    parser = arguments("engines")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5])
    asked = parser.parse_args()
    bench = Bench.of(asked)
    dense = {bits: in_onnxruntime(bench.model(), bench.tokenizer, bits) for bits in BITS}
    found = {**resumed(asked), **environment(asked), "dense": _described(bench, dense)}
    for seed in asked.seeds:
        for flops in asked.flops:
            run: dict[str, Any] = {"flops": flops, "seed": seed}
            if is_done(found, run):
                continue
            model = bench.model()
            niwaki.prune_(model, niwaki.Structured(flops=flops, seed=seed), list(bench.batches(asked.rows, seed)))
            pruned = {bits: in_onnxruntime(merge_(model), bench.tokenizer, bits) for bits in BITS}
            run["pruned"], both = _described(bench, pruned), {"dense": dense, "pruned": pruned}
            sides = {f"pruned / dense, {bits}": (dense[bits], pruned[bits]) for bits in BITS}
            sides |= {f"int8 / float32, {name}": (of["none"], of["int8"]) for name, of in both.items()}
            for name, (slower, faster) in sides.items():
                run[name] = speedups(slower.model, faster.model)
            note(found, run, asked.out)


def _described(bench: Bench, sides: dict[str, Placed]) -> dict[str, Any]:
    """Of each number of bits the quality and the bytes."""
    return {
        bits: {"quality": quality(there.model, bench.tests), "bytes": there.size_bytes} for bits, there in sides.items()
    }


if __name__ == "__main__":
    main()
