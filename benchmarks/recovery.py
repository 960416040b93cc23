"""Accuracy after one epoch of recovery, distilled from the dense model: by LoRA, and of all weights that are left.

    python benchmarks/recovery.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --training-rows 16000

`kl` is the divergence of the dense model from the pruned one on training rows that neither calibration nor training
saw. Its JSON is written after every run, and a run that is in it already is not made again.
"""

from __future__ import annotations

import itertools

import niwaki
from common import Bench, arguments, held_out, held_out_rows, is_done, note, resumed
from niwaki.adapters import merge_, remove_masks_
from niwaki.data import Batches, sample


def main() -> None:
    parser = arguments("recovery")
    parser.add_argument("--flops", type=float, nargs="*", default=[0.2])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.9])
    parser.add_argument("--training-rows", type=int, help="all that do not measure divergence, by default")
    asked = parser.parse_args()
    bench = Bench.of(asked)
    divergence = held_out(bench, asked)
    measured = {id(row) for row in held_out_rows(bench, asked)}
    rows = [row for row in bench.train if id(row) not in measured]
    found = resumed(asked)
    found.setdefault("dense", bench.quality(bench.model()))
    budgets = [("flops", share) for share in asked.flops] + [("sparsity", share) for share in asked.sparsity]
    for seed, (kind, share), full in itertools.product(asked.seeds, budgets, (False, True)):
        training = Batches(sample(rows, asked.training_rows or len(rows), seed), bench.tokenizer, 32)
        run = {kind: share, "full": full, "training_rows": len(training.rows), "seed": seed}
        if is_done(found, run):
            continue
        method = niwaki.Structured if kind == "flops" else niwaki.LayerAdaptive
        config = method(**{kind: share}, recover_epochs=1, recover_full=full, seed=seed)
        model = bench.model()
        result = niwaki.prune_(model, config, bench.batches(asked.rows, seed), training_data=training)
        plain = merge_(model)
        remove_masks_(plain)
        run |= {"achieved": result.achieved, "quality": bench.quality(plain), "kl": divergence(plain)}
        note(found, run, asked.out)


if __name__ == "__main__":
    main()
