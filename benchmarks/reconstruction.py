"""Layers that learn after their refit, by what learns, budget and seed: divergence, accuracy, and cost in passes.

    python benchmarks/reconstruction.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

No run is trained with labels. `kl` is the divergence of the dense model from the pruned one on training rows that no
calibration saw, by which a default is chosen. Runs that the JSON holds already are not done again.
"""

from __future__ import annotations

import itertools

import niwaki
from common import Bench, arguments, held_out, is_done, note, resumed
from niwaki.adapters import merge_, remove_masks_
from niwaki.config.reconstruct import LEARNED


def main() -> None:
    parser = arguments("reconstruction")
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.9])
    parser.add_argument("--flops", type=float, nargs="*", default=[0.2])
    parser.add_argument("--reconstruct", nargs="+", default=LEARNED[1:], choices=LEARNED)
    asked = parser.parse_args()
    bench = Bench.of(asked)
    divergence = held_out(bench, asked)
    found = {**resumed(asked), "dense": bench.quality(bench.model())}
    budgets = [("sparsity", share) for share in asked.sparsity] + [("flops", share) for share in asked.flops]
    for seed, (kind, share), which in itertools.product(asked.seeds, budgets, asked.reconstruct):
        run = {kind: share, "reconstruct": which, "seed": seed}
        if is_done(found, run):
            continue
        method = niwaki.LayerAdaptive if kind == "sparsity" else niwaki.Structured
        model = bench.model()
        result = niwaki.prune_(
            model, method(**{kind: share}, reconstruct=which, seed=seed), bench.batches(asked.rows, seed)
        )
        plain = merge_(model)
        remove_masks_(plain)
        passes = {"forward": result.forward_passes, "backward": result.backward_passes}
        made = {"kl": divergence(plain), "quality": bench.quality(plain), "passes": passes}
        note(found, {**run, **made, "seconds": round(result.seconds)}, asked.out)


if __name__ == "__main__":
    main()
