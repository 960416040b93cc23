"""Accuracy of structured pruning without training, by budget and seed, and its cost.

    python benchmarks/structured.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

`cost` is the seconds of pruning over the seconds of one forward-and-backward pass (weights frozen, as in training LoRA)
over the same calibration rows, timed in the same run.
"""

from __future__ import annotations

import niwaki
from common import Bench, arguments, forward_and_backward, is_done, note, resumed


def main() -> None:
    parser = arguments("structured")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    asked = parser.parse_args()
    bench = Bench.of(asked)
    found = {**resumed(asked), "dense": bench.quality(bench.model())}
    for flops in asked.flops:
        for seed in asked.seeds:
            if is_done(found, {"flops": flops, "seed": seed}):
                continue
            calibration, model = bench.batches(asked.rows, seed), bench.model()
            one_pass = forward_and_backward(model, calibration)
            result = niwaki.prune_(model, niwaki.Structured(flops=flops, seed=seed), calibration)
            run = {"flops": flops, "seed": seed, "achieved": result.achieved, "cost": result.seconds / one_pass}
            kept = {site.name: site.kept for site in result.layers}
            note(found, {**run, "quality": bench.quality(model), "kept": kept}, asked.out)


if __name__ == "__main__":
    main()
