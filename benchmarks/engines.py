"""Dense and pruned, in float32 and in int8, under ONNX Runtime and OpenVINO: quality, bytes of the file, speed in turn.

    python benchmarks/engines.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

Every speed-up is the median of the ratios of pairs in one run, on as many threads as PyTorch has: the pruned model over
the dense one in each engine and number of bits, and what is rounded over what is not. Roundings see 512 training rows.
"""

from __future__ import annotations

from typing import Any

import niwaki
from common import Bench, arguments, environment, is_done, note, resumed, speedups
from niwaki.adapters import merge_
from niwaki.config.engine import ROUNDINGS
from niwaki.evaluate import quality
from niwaki.export import IN_ENGINE, Calibration
from niwaki.export.placed import Placed

WHERE = [(engine, bits) for engine in ("onnxruntime", "openvino") for bits in ROUNDINGS[engine]]
SEEN = 512


def main() -> None:
    parser = arguments("engines")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5])
    asked = parser.parse_args()
    bench = Bench.of(asked)
    dense = _placed(bench, bench.model())
    found = {**resumed(asked), **environment(asked), "dense": _described(bench, dense)}
    for seed in asked.seeds:
        for flops in asked.flops:
            run: dict[str, Any] = {"flops": flops, "seed": seed}
            if is_done(found, run):
                continue
            model = bench.model()
            niwaki.prune_(model, niwaki.Structured(flops=flops, seed=seed), list(bench.batches(asked.rows, seed)))
            pruned = _placed(bench, merge_(model))
            run["pruned"] = _described(bench, pruned)
            for where, there in pruned.items():
                run[f"pruned / dense, {where}"] = speedups(dense[where].model, there.model)
            for name, sides in {"dense": dense, "pruned": pruned}.items():
                for engine, bits in WHERE:
                    if bits != "none":
                        exact, rounded = sides[f"{engine} none"], sides[f"{engine} {bits}"]
                        run[f"{engine} {bits} / none, {name}"] = speedups(exact.model, rounded.model)
            note(found, run, asked.out)


def _placed(bench: Bench, model: Any) -> dict[str, Placed]:
    """The model in each engine, in each number of bits."""
    seen = Calibration(list(bench.batches(SEEN, 0)))
    return {f"{engine} {bits}": IN_ENGINE[engine](model, bench.tokenizer, bits, seen) for engine, bits in WHERE}


def _described(bench: Bench, sides: dict[str, Placed]) -> dict[str, Any]:
    """Of each the quality, the bytes, and how many matrices int8 left in float32."""
    return {
        where: {
            "quality": quality(there.model, bench.tests),
            "bytes": there.size_bytes,
            "in_float32": there.in_float32,
        }
        for where, there in sides.items()
    }


if __name__ == "__main__":
    main()
