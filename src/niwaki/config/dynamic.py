"""What dynamic sparsity can be asked for: how the masks move, and how a stage trains under them.

`DynamicSparsityConfig` holds the options of `niwaki.DynamicSparsity`, for a training of one's own; with
`DynamicSparsityTraining` Niwaki trains.
"""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import (
    BUDGET,
    TRAINING,
    check_above_zero,
    check_at_least,
    check_seed,
    check_sparsity,
    check_unused,
    option,
    required,
)
from niwaki.config.filter import Filter
from niwaki.config.finetune import LORA_RANK
from niwaki.config.layer_adaptive import SPARSITY_ALLOCATIONS
from niwaki.config.patterns import NByM, Pattern, parse_pattern
from niwaki.config.training import Training
from niwaki.config.types import check_types
from niwaki.errors import RequestError, check_choice

SCHEDULES = ("cubic", "linear", "constant")
FRACTIONS = ("cosine", "constant", "inverse-power")
DROPS = ("magnitude", "saliency")
GROWS = ("gradient", "saliency", "momentum", "random", "shuffled", "none")
REALLOCATIONS = ("across", "within")
RETURNS = ("value", "zero")
TEACHERS = ("dense", "none")


@dataclass(frozen=True)
class DynamicSparsityConfig(Filter):
    """Masks that move while training: what is small is dropped, what matters returns, exactly `sparsity` at the end.

    `warmup`, `reach` and `stop` are fractions of the training (up to 1) or numbers of optimizer steps (above 1). An
    option that what else is asked does not look at is refused when given.
    """

    sparsity: float = required("Fraction of the blocks' linear weights that are zero at the end, in [0, 1).")
    schedule: str = option("cubic", f"How the sparsity rises: {', '.join(SCHEDULES)}.")
    start_sparsity: float = option(0.0, "Sparsity at which cubic and linear start.", BUDGET)
    interval: int = option(25, "Optimizer steps from one update of the mask to the next.")
    warmup: float = option(0.0, "Fraction of the training, or steps, before the sparsity starts to rise.")
    reach: float = option(0.6, "Fraction of the training, or steps, after which the sparsity is as asked.")
    stop: float = option(0.75, "Fraction of the training, or steps, after which the mask no longer moves.")
    drop: str = option("saliency", f"How active weights are scored: {', '.join(DROPS)}.")
    grow: str = option("saliency", f"How inactive weights are scored: {', '.join(GROWS)}.")
    update_fraction: float = option(0.3, "Share of the active weights that an update may replace, at its largest.")
    fraction_schedule: str = option("cosine", f"How that share falls: {', '.join(FRACTIONS)}.")
    reallocation: str = option("across", "Whether weights move across linears, or within each: across or within.")
    allocation: str = option("uniform", f"How the zeros are first shared out: {', '.join(SPARSITY_ALLOCATIONS)}.")
    max_sparsity: float | None = option(
        None, "Highest sparsity of a linear, 0.98 by default (or the sparsity asked, if higher).", BUDGET
    )
    window: int = option(10, "Steps up to an update whose gradients its smoothed scores are made of.")
    smoothing: float = option(0.85, "Decay of the smoothed saliency and of the momentum.")
    uncertainty: float = option(0.95, "Decay of the saliency's uncertainty.")
    returns: str = option("value", "What a weight that is itself trained returns with: value (it had) or zero.")
    pattern: str = option("unstructured", "unstructured, n:m (n of m neighbours kept, like 2:4) or rxc (like 4x1).")
    seed: int = option(0, "Seed of everything that is drawn.")

    def __post_init__(self) -> None:
        check_types(self)
        self.check_filter()
        check_sparsity(self)
        if not 0.0 <= self.start_sparsity <= self.sparsity:
            raise RequestError(f"start_sparsity must be in [0, {self.sparsity:g}], got {self.start_sparsity:g}")
        if not self.sparsity <= self.highest <= 1.0:
            raise RequestError(f"max_sparsity must be in [{self.sparsity:g}, 1], got {self.highest:g}")
        if not 0.0 <= self.update_fraction <= 1.0:
            raise RequestError(f"update_fraction must be in [0, 1], got {self.update_fraction:g}")
        for name in ("smoothing", "uncertainty"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise RequestError(f"{name} must be in [0, 1), got {getattr(self, name):g}")
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("fraction_schedule", self.fraction_schedule, FRACTIONS)
        check_choice("drop", self.drop, DROPS)
        check_choice("grow", self.grow, GROWS)
        check_choice("reallocation", self.reallocation, REALLOCATIONS)
        check_choice("allocation", self.allocation, SPARSITY_ALLOCATIONS)
        check_choice("returns", self.returns, RETURNS)
        check_seed(self)
        check_at_least(self, 1, "interval", "window")
        check_at_least(self, 0, "warmup")
        check_above_zero(self, "reach", "stop")
        for name in ("warmup", "reach", "stop"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise RequestError(f"{name} must be a fraction up to 1, or a whole number of steps, got {value:g}")
        found = self.zero_pattern
        if isinstance(found, NByM):
            for name, only in (("schedule", "constant"), ("allocation", "uniform")):
                if getattr(self, name) != only:
                    raise RequestError(f"{name} must be {only} for pattern {found}, got {getattr(self, name)!r}")
            check_unused(self, f"pattern {found}", "reallocation", "max_sparsity")
        self._check_unused()

    def _check_unused(self) -> None:
        """Refuse what was given and is not looked at."""
        constant = self.schedule == "constant"
        if constant:
            check_unused(self, "schedule constant", "start_sparsity", "reach")
        elif not self.start_sparsity and self.reallocation == "across":
            # Nothing is zero yet, and then weights go wherever in the model they are lowest.
            check_unused(self, "reallocation across from start_sparsity 0", "allocation")
        if self.grow == "none":
            check_unused(self, "grow none", "update_fraction", "fraction_schedule", "returns")
        if constant and self.grow == "none":
            still = "schedule constant and grow none"
            check_unused(self, still, "interval", "warmup", "stop", "drop", "reallocation", "window")
        asked = f"drop {self.drop} and grow {self.grow}"
        smoothed = "saliency" in (self.drop, self.grow)
        if not smoothed:
            check_unused(self, asked, "uncertainty")
        if not smoothed and self.grow != "momentum":
            check_unused(self, asked, "smoothing")
        if self.drop == "magnitude" and self.grow in ("random", "none"):
            check_unused(self, asked, "window")

    @property
    def highest(self) -> float:
        """Highest sparsity of a linear."""
        return max(0.98, self.sparsity) if self.max_sparsity is None else self.max_sparsity

    @property
    def zero_pattern(self) -> Pattern:
        """The pattern as a type."""
        return parse_pattern(self.pattern)


@dataclass(frozen=True)
class DynamicSparsityTraining(DynamicSparsityConfig, Training):
    """Dynamic sparsity with its own training: LoRA on all linears of the blocks (or the adapter that is there)."""

    epochs: int = option(2, "Times that the training data are gone through.", TRAINING)
    lora_rank: int = option(LORA_RANK, "Rank of the LoRA factors of a model without an adapter.", TRAINING)
    learning_rate: float = option(1e-3, "Peak learning rate of AdamW.", TRAINING)
    teacher: str = option(
        "dense", "Who is learned from: dense (the model that came in) or none (the labels).", TRAINING
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_training()
        check_at_least(self, 1, "epochs", "lora_rank")
        check_above_zero(self, "learning_rate")
        check_choice("teacher", self.teacher, TEACHERS)
        check_unused(self, "LoRA, under which a weight keeps its value", "returns")

    @property
    def budget(self) -> tuple[str, float]:
        """The kind of budget, and the fraction of zeros."""
        return "sparsity", self.sparsity
