"""Accuracy after one epoch of recovery (LoRA, distilled from the dense model) at a fifth of the FLOPs.

python benchmarks/recovery.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv
"""

from __future__ import annotations

import niwaki
from common import Bench, arguments, environment, note


def main() -> None:
    parser = arguments("recovery")
    parser.add_argument("--flops", type=float, default=0.2)
    parser.add_argument("--training-rows", type=int, help="all by default")
    asked = parser.parse_args()
    bench = Bench.of(asked)
    found = {**environment(asked), "dense": bench.quality(bench.model())}
    for seed in asked.seeds:
        calibration, model = bench.batches(asked.rows, seed), bench.model()
        training = bench.batches(asked.training_rows or len(bench.train), seed)
        config = niwaki.Structured(flops=asked.flops, recover_epochs=1, seed=seed)
        result = niwaki.prune_(model, config, calibration, training_data=training)
        run = {"flops": asked.flops, "seed": seed, "achieved": result.achieved}
        note(found, {**run, "quality": bench.quality(model)}, asked.out)


if __name__ == "__main__":
    main()
