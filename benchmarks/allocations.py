"""Every allocation of zeros x {magnitude, wanda, sparsegpt}, no refit and no training: which rule profiles them best?

    python benchmarks/allocations.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --rows 1024

A weight score is used as published, the same for every rule: magnitude, Wanda (compared along the output row),
SparseGPT with the OBS update of what is left. So the allocation is all that differs. The calibration data are observed
once for each seed; all rules share what was seen. Runs that the JSON holds already are not done again: an interruption
costs one run.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common import Bench, arguments, is_done, note, resumed
from niwaki.adapters import apply_mask_, effective_weight, merge_, remove_masks_
from niwaki.allocation.sparsity import SPARSITY_ALLOCATORS, Curve, LinearProfile, Profiles, towards_uniform
from niwaki.anatomy import BlockLinear, linears_of
from niwaki.config import LAYER_SCORES
from niwaki.config.layer_adaptive import AUTO
from niwaki.config.patterns import Unstructured
from niwaki.masks import choose
from niwaki.methods.importance_strength import best_strength
from niwaki.observe import Batch, Need, observe
from niwaki.observe.moments import with_moments
from niwaki.repair.least_squares import Optimum
from niwaki.repair.reconstruct import reconstruct_
from niwaki.scoring.layers import LAYER_SCORERS
from niwaki.scoring.sensitivity import sensitivity
from niwaki.scoring.weights import WEIGHT_SCORERS
from niwaki.sparsify.curves import loss_curve
from niwaki.sparsify.obs import obs_factor, obs_prune

WEIGHT_SCORES = ("magnitude", "wanda", "sparsegpt")
OF_THE_SEED = ("output-gradient", "activation-magnitude")
"""The layer scores of the text that Niwaki grew from."""
DRAWN = (*OF_THE_SEED, "gradient-activation", "fisher")
"""Layer scores whose strength is chosen as well, by what diverges least on drawn rows."""
RULES: tuple[tuple[str, str | None, float | str], ...] = (
    ("search", None, 1.0),
    ("uniform", None, 1.0),
    *(("inverse-importance", score, power) for score in OF_THE_SEED for power in (0.5, 1.0, 2.0)),
    *(("inverse-importance", score, AUTO) for score in DRAWN),
    *(("inverse-importance", score, 1.0) for score in LAYER_SCORES if score not in OF_THE_SEED),
    ("owl", "outliers", 1.0),
    *((rule, None, 1.0) for rule in ("global", "erk", "lamp")),
)
"""Allocation, layer score where it looks at one, importance power (`auto`: 1, at the strength that diverges least)."""
AT = (0.5, 0.7, 0.8, 0.9, 0.96)
"""Sparsities at which the curves are measured, once for every budget."""
HIGHEST = 0.98
"""The highest sparsity of a linear: the default of `niwaki.LayerAdaptive`."""


class Seen:
    """What one observation of the dense model tells every rule: layer scores, weight scores, loss curves."""

    def __init__(self, model: nn.Module, data: Sequence[Batch], seed: int) -> None:
        self.seed, linears = seed, linears_of(model)
        need = Need(output_gradients=True, task_gradients=True, token_sizes=True)
        statistics = observe(model, data, need, seed=seed)
        self.weights = {linear.name: effective_weight(linear.module).clone() for linear in linears}
        self.importance = {name: scorer(linears, statistics, seed) for name, scorer in LAYER_SCORERS.items()}
        self.importance["sensitivity"] = sensitivity(model, linears, data, seed)
        self.scores: dict[str, dict[str, Tensor]] = {name: {} for name in WEIGHT_SCORES}
        self.curves: dict[str, Curve] = {}
        for linear, own in with_moments(model, statistics, data, statistics.token_weights):
            self.curves[linear.name] = loss_curve(linear, own, AT)
            for name in WEIGHT_SCORES:
                self.scores[name][linear.name] = WEIGHT_SCORERS[name](linear, own, seed)

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


def prune(bench: Bench, seen: Seen, zeros: dict[str, int], weight_score: str, data: Sequence[Batch]) -> nn.Module:
    """A fresh model with `zeros` zeros a linear."""
    model = bench.model()

    def sparsegpt(linear: BlockLinear, best: Optimum) -> tuple[Tensor, Tensor]:
        upper = obs_factor(best.factor).float()
        return obs_prune(best.weight.float(), upper, zeros[linear.name], Unstructured(), linear.name)

    if weight_score == "sparsegpt":
        reconstruct_(model, model, data, sparsegpt, targets=False)
    else:
        for linear in linears_of(model):
            scores, by_row = seen.scores[weight_score][linear.name], weight_score == "wanda"
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
                    if power == AUTO:
                        zeros, run["strength"] = drawn_zeros(bench, seen, profiles, wanted, weight_score, calibration)
                    else:
                        zeros = SPARSITY_ALLOCATORS[allocation](profiles, wanted, power)
                    model = prune(bench, seen, zeros, weight_score, calibration)
                    note(found, {**run, "quality": bench.quality(model)}, asked.out)


def drawn_zeros(
    bench: Bench, seen: Seen, profiles: Profiles, wanted: int, weight_score: str, data: Sequence[Batch]
) -> tuple[dict[str, int], float]:
    """The zeros of inverse-importance at the strength that `importance_strength="auto"` chooses, and that strength."""
    ranks = "wanda" if weight_score == "sparsegpt" else weight_score
    formula = SPARSITY_ALLOCATORS["inverse-importance"](profiles, wanted, 1.0)
    model = bench.model()

    def mask_for(linear: BlockLinear, zeros: int) -> Tensor:
        return choose(seen.scores[ranks][linear.name], zeros, Unstructured(), linear.name, by_row=ranks == "wanda")

    strength = best_strength(model, linears_of(model), formula, profiles, mask_for, data, seen.seed)
    return towards_uniform(formula, profiles, strength), strength


if __name__ == "__main__":
    main()
