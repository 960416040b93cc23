"""Every allocation of zeros x {magnitude, wanda, sparsegpt}, no refit and no training: which rule profiles them best?

    python benchmarks/allocations.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --rows 1024

A weight score is used as published: magnitude, Wanda (along the output row where the allocation is uniform), SparseGPT
with the OBS update of what is left. The calibration data are observed once for each seed; all rules share what was
seen. Runs that the JSON holds already are not done again: an interruption costs one run.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common import Bench, arguments, is_done, note, resumed
from niwaki.adapters import apply_mask_, effective_weight, merge_, remove_masks_
from niwaki.allocation.curves import Curve, loss_curve
from niwaki.allocation.sparsity import SPARSITY_ALLOCATORS, LinearProfile
from niwaki.anatomy import linears_of
from niwaki.config.layer_adaptive import LAYER_SCORES
from niwaki.masks import Unstructured, choose
from niwaki.observe.linears import WeightNeed, observe_linears
from niwaki.observe.moments import input_moments
from niwaki.observe.tokens import token_weights
from niwaki.observe.units import Batch
from niwaki.repair.reconstruct import reconstruct_
from niwaki.scoring.layers import LAYER_SCORERS
from niwaki.scoring.sensitivity import sensitivity
from niwaki.scoring.weights import WEIGHT_SCORERS

WEIGHT_SCORES = ("magnitude", "wanda", "sparsegpt")
OF_THE_SEED = ("output-gradient", "activation-magnitude")
"""The layer scores of the text that Niwaki grew from."""
RULES = (
    ("search", None, 1.0),
    ("uniform", None, 1.0),
    *(("inverse-importance", score, power) for score in OF_THE_SEED for power in (0.5, 1.0, 2.0)),
    *(("inverse-importance", score, 1.0) for score in LAYER_SCORES if score not in OF_THE_SEED),
    ("owl", "outliers", 1.0),
    *((rule, None, 1.0) for rule in ("global", "erk", "lamp")),
)
"""Allocation, layer score where it looks at one, importance power."""
HIGHEST = 0.98
"""The highest sparsity of a linear: the default of `niwaki.LayerAdaptive`."""


class Seen:
    """What one observation of the dense model tells every rule: layer scores, weight scores, loss curves."""

    def __init__(self, model: nn.Module, data: Sequence[Batch], seed: int) -> None:
        linears = linears_of(model)
        statistics = observe_linears(model, data, WeightNeed(output_gradients=True, task_gradients=True), seed=seed)
        self.weights = {linear.name: effective_weight(linear.module).clone() for linear in linears}
        self.importance = {
            name: {linear.name: scorer(linear, statistics, seed) for linear in linears}
            for name, scorer in LAYER_SCORERS.items()
        }
        self.importance["sensitivity"] = sensitivity(model, linears, data)
        self.scores: dict[str, dict[str, Tensor]] = {name: {} for name in WEIGHT_SCORES}
        self.curves: dict[str, Curve] = {}
        for linear, moments in input_moments(model, data, token_weights(model, data, seed=seed)):
            own = statistics.linears[linear.name]
            own.moments = moments
            self.curves[linear.name] = loss_curve(linear, statistics)
            for name in WEIGHT_SCORES:
                self.scores[name][linear.name] = WEIGHT_SCORERS[name](linear, statistics, seed)
            own.moments = 0.0

    def profiles(self, layer_score: str | None, weight_score: str) -> dict[str, LinearProfile]:
        """What an allocation is told."""
        return {
            name: LinearProfile(
                shape=(weight.shape[0], weight.shape[1]),
                high=HIGHEST,
                importance=1.0 if layer_score is None else self.importance[layer_score][name],
                scores=self.scores[weight_score][name],
                weights=weight,
                curve=self.curves[name],
            )
            for name, weight in self.weights.items()
        }


def prune(
    bench: Bench, seen: Seen, zeros: dict[str, int], weight_score: str, by_row: bool, data: Sequence[Batch]
) -> nn.Module:
    """A fresh model with `zeros` zeros a linear."""
    model = bench.model()
    if weight_score == "sparsegpt":
        reconstruct_(model, model, data, zeros, Unstructured(), targets=False)
    else:
        for linear in linears_of(model):
            scores = seen.scores[weight_score][linear.name]
            apply_mask_(linear.module, choose(scores, zeros[linear.name], Unstructured(), linear.name, by_row=by_row))
    merged = merge_(model)
    remove_masks_(merged)
    return merged


def main() -> None:
    parser = arguments("allocations")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--weight-score", nargs="+", default=list(WEIGHT_SCORES))
    asked = parser.parse_args()
    bench = Bench.of(asked)
    found = {**resumed(asked), "dense": bench.quality(bench.model())}
    for seed in asked.seeds:
        calibration = list(bench.batches(asked.rows, seed))
        seen = Seen(bench.model(), calibration, seed)
        for weight_score in asked.weight_score:
            for allocation, layer_score, power in RULES:
                profiles = seen.profiles(layer_score, weight_score)
                for sparsity in asked.sparsity:
                    run = {
                        "weight_score": weight_score,
                        "allocation": allocation,
                        "layer_score": layer_score,
                        "importance_power": power,
                        "sparsity": sparsity,
                        "seed": seed,
                    }
                    if is_done(found, run):
                        continue
                    wanted = round(sparsity * sum(profile.size for profile in profiles.values()))
                    zeros = SPARSITY_ALLOCATORS[allocation](profiles, wanted, power)
                    by_row = weight_score == "wanda" and allocation == "uniform"
                    model = prune(bench, seen, zeros, weight_score, by_row, calibration)
                    note(found, {**run, "quality": bench.quality(model)}, asked.out)


if __name__ == "__main__":
    main()
