"""Every score beside every other, and `random`: accuracy at two budgets, no training; the table of docs/scores.md.

    python benchmarks/scores.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --rows 1024

The seed's own scores are `attention-variance` for heads and `activation` for neurons. Runs that the JSON holds already
are not done again.
"""

from __future__ import annotations

import statistics

import niwaki
from common import Bench, arguments, is_done, note, resumed

PAIRS = (
    ("reconstruction", "reconstruction"),
    ("attention-variance", "activation"),
    ("attention-variance", "reconstruction"),
    ("reconstruction", "activation"),
    ("reconstruction", "activation-variance"),
    ("fisher", "fisher"),
    ("taylor", "taylor"),
    ("random", "random"),
)
"""Head score, neuron score."""


def main() -> None:
    parser = arguments("scores")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.3])
    asked = parser.parse_args()
    bench = Bench.of(asked)
    found = {**resumed(asked), "dense": bench.quality(bench.model())}
    for seed in asked.seeds:
        calibration = list(bench.batches(asked.rows, seed))
        for head, neuron in PAIRS:
            for flops in asked.flops:
                run = {"head_score": head, "neuron_score": neuron, "flops": flops, "seed": seed}
                if is_done(found, run):
                    continue
                model = bench.model()
                config = niwaki.Structured(flops=flops, head_score=head, neuron_score=neuron, seed=seed)
                niwaki.prune_(model, config, calibration)
                note(found, {**run, "quality": bench.quality(model)}, asked.out)
    for head, neuron in PAIRS:
        cells = []
        for flops in asked.flops:
            of_pair = [
                r for r in found["runs"] if (r["head_score"], r["neuron_score"], r["flops"]) == (head, neuron, flops)
            ]
            values = [next(iter(r["quality"].values())) for r in of_pair]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        print(f"| {head} | {neuron} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
