"""What layer-adaptive pruning can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import check_above_zero, check_at_least, check_seed, check_sparsity, option, required
from niwaki.config.patterns import NByM, Pattern, parse_pattern
from niwaki.errors import RequestError, check_choice

LAYER_SCORES = (
    "output-gradient",
    "activation-magnitude",
    "fisher",
    "block-influence",
    "outliers",
    "spectrum",
    "sensitivity",
    "random",
)
WEIGHT_SCORES = ("magnitude", "wanda", "sparsegpt", "gradient", "random")
SPARSITY_ALLOCATIONS = ("inverse-importance", "uniform", "global", "erk", "lamp", "owl", "search")
AUTO = "auto"
GRANULARITIES = ("block", "linear")
WEIGHT_REPAIRS = ("none", "least-squares")


@dataclass(frozen=True, kw_only=True)
class LinearScores:
    """How layers and single weights are scored."""

    layer_score: str = option("fisher", f"How layers are scored: {', '.join(LAYER_SCORES)}.")
    weight_score: str = option("sparsegpt", f"How weights are scored: {', '.join(WEIGHT_SCORES)}.")
    granularity: str = option("linear", "What has an importance of its own: block or linear.")

    def __post_init__(self) -> None:
        check_choice("layer_score", self.layer_score, LAYER_SCORES)
        check_choice("weight_score", self.weight_score, WEIGHT_SCORES)
        check_choice("granularity", self.granularity, GRANULARITIES)


@dataclass(frozen=True)
class LayerAdaptive(LinearScores):
    """Zero single weights of the blocks' linears (or n:m groups, or blocks of weights) until `sparsity` of them are."""

    sparsity: float = required("Fraction of the blocks' linear weights that become zero, in [0, 1).")
    allocation: str = option(
        AUTO, f"How the zeros are shared out: {', '.join(SPARSITY_ALLOCATIONS)}; auto is search, uniform for n:m."
    )
    importance_power: float = option(1.0, "Power of the importance in inverse-importance.")
    min_sparsity: float = option(0.0, "Lowest sparsity of a linear.")
    max_sparsity: float = option(0.98, "Highest sparsity of a linear.")
    pattern: str = option("unstructured", "unstructured, n:m (n of m neighbours kept, like 2:4) or rxc (like 4x1).")
    steps: int = option(1, "Rounds of observing and pruning, on a cubic ramp of sparsity.")
    repair: str = option("least-squares", f"How what is left is refitted: {', '.join(WEIGHT_REPAIRS)}.")
    recover_epochs: int = option(0, "Epochs of LoRA training under the masks, distilled from the dense model.")
    recover_learning_rate: float = option(1e-3, "Peak learning rate of that training.")
    seed: int = option(0, "Seed of everything that is drawn.")

    def __post_init__(self) -> None:
        check_sparsity(self)
        if not 0.0 <= self.min_sparsity <= self.max_sparsity <= 1.0:
            bounds = f"min_sparsity {self.min_sparsity:g} and max_sparsity {self.max_sparsity:g}"
            raise RequestError(f"min_sparsity and max_sparsity must be in order in [0, 1], got {bounds}")
        super().__post_init__()
        found = self.zero_pattern
        if self.allocation == AUTO:
            object.__setattr__(self, "allocation", "uniform" if isinstance(found, NByM) else "search")
        check_choice("allocation", self.allocation, SPARSITY_ALLOCATIONS)
        check_choice("repair", self.repair, WEIGHT_REPAIRS)
        check_at_least(self, 1, "steps")
        check_at_least(self, 0, "recover_epochs")
        check_above_zero(self, "importance_power", "recover_learning_rate")
        check_seed(self)
        if isinstance(found, NByM):
            if self.allocation != "uniform":
                raise RequestError(f"allocation must be uniform for pattern {found}, got {self.allocation!r}")
            if self.steps != 1:
                raise RequestError(f"steps must be 1 for pattern {found}, got {self.steps}")

    @property
    def zero_pattern(self) -> Pattern:
        """The pattern as a type."""
        return parse_pattern(self.pattern)
