"""Accuracy of layer-adaptive pruning, by allocation, weight score, sparsity and seed; writes its JSON after every run.

    python benchmarks/layer_adaptive.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

With `--timed` (on a machine that does nothing else) `cost` is the seconds of pruning over those of one forward-and-
backward pass (weights frozen, as in training LoRA) over the same calibration rows, timed in the same run, and
`peak_mib` the process's peak so far. `kl` is the divergence of the dense model from the pruned one on training rows
that no calibration saw: settings are chosen by it, never by the evaluation data. `zeros` counts the merged weights
independently of the result's own record.
"""

from __future__ import annotations

import itertools
import resource

import niwaki
from common import Bench, arguments, forward_and_backward, held_out, is_done, note, resumed
from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import linears_of, weight_of

OPTIONS = ("repair", "weight_score", "allocation", "layer_score", "importance_power", "sparsity", "seeds")


def main() -> None:
    default = niwaki.LayerAdaptive(sparsity=0.5).resolved()
    parser = arguments("layer_adaptive")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    for name in OPTIONS[:4]:
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", default=[getattr(default, name)])
    parser.add_argument("--importance-power", type=float, nargs="+", default=[None])
    parser.add_argument("--timed", action="store_true")
    asked = parser.parse_args()

    bench = Bench.of(asked)
    divergence = held_out(bench, asked)
    found = {**resumed(asked), "dense": bench.quality(bench.model())}
    for values in itertools.product(*(getattr(asked, name) for name in OPTIONS)):
        options = dict(zip(OPTIONS, values, strict=True))
        seed = options.pop("seeds")
        if is_done(found, {**options, "seed": seed}):
            continue
        config = niwaki.LayerAdaptive(**options, seed=seed)
        calibration = bench.batches(asked.rows, seed)
        model = bench.model()
        one_pass = forward_and_backward(model, calibration) if asked.timed else 1.0
        result = niwaki.prune_(model, config, calibration)
        plain = merge_(model)
        remove_masks_(plain)
        run = {
            **options,
            "seed": seed,
            "achieved": result.achieved,
            "zeros": sum(int((weight_of(linear.module) == 0).sum()) for linear in linears_of(plain)),
            "quality": bench.quality(plain),
            "kl": divergence(plain),
            "ratios": {layer.name: round(layer.ratio, 4) for layer in result.layers},
        }
        if asked.timed:
            run["cost"] = result.seconds / one_pass
            run["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        note(found, run, asked.out)


if __name__ == "__main__":
    main()
