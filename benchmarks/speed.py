"""Speed of a model pruned to half its FLOPs, and the latency budget; dense and pruned timed in turn.

    python benchmarks/speed.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

Every speed-up is the median of the ratios of pairs in one run. Other engines are in `engines.py`.
"""

from __future__ import annotations

import copy
from typing import Any

import niwaki
from common import Bench, arguments, environment, note, speedups
from niwaki.adapters import merge_


def main() -> None:
    asked = arguments("speed").parse_args()
    bench = Bench.of(asked)
    found = {**environment(asked), "dense": bench.quality(bench.model())}
    dense = merge_(bench.model())
    for seed in asked.seeds:
        calibration = list(bench.batches(asked.rows, seed))
        for budget in ({"flops": 0.5}, {"latency": 0.5}):
            model = bench.model()
            result = niwaki.prune_(model, niwaki.Structured(**budget, seed=seed), calibration)
            pruned = merge_(model)
            run: dict[str, Any] = {"budget": budget, "seed": seed, "achieved": result.achieved}
            run |= {"quality": bench.quality(copy.deepcopy(pruned)), "kept": {s.name: s.kept for s in result.layers}}
            run["torch"] = speedups(dense, pruned)
            note(found, run, asked.out)


if __name__ == "__main__":
    main()
