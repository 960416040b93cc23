"""What layer-adaptive pruning can be asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from niwaki.config.fields import (
    BUDGET,
    FIRST,
    check_above_zero,
    check_at_least,
    check_seed,
    check_sparsity,
    check_unused,
    defaults,
    option,
)
from niwaki.config.filter import Filter
from niwaki.config.patterns import NByM, Pattern, parse_pattern
from niwaki.config.planned import Planned
from niwaki.config.reconstruct import check_reconstruct, reconstruct_option
from niwaki.config.recovery import Recovery
from niwaki.config.types import check_types
from niwaki.errors import RequestError, check_choice

LAYER_SCORES = (
    "output-gradient",
    "activation-magnitude",
    "gradient-activation",
    "fisher",
    "block-influence",
    "outliers",
    "spectrum",
    "sensitivity",
    "random",
)
WEIGHT_SCORES = ("magnitude", "wanda", "sparsegpt", "alps", "gradient", "random")
SOLVED = ("sparsegpt", "alps")
"""Weight scores that are no numbers of each weight: a solve of the linear chooses, when its turn has come."""
SPARSITY_ALLOCATIONS = ("inverse-importance", "uniform", "global", "erk", "lamp", "owl", "search")
AUTO = "auto"
GRANULARITIES = ("block", "linear")
WEIGHT_REPAIRS = ("none", "least-squares")
_LAYER_SCORE = {"inverse-importance": "fisher", "owl": "outliers"}
"""Allocations that look at the importance of layers, and the score that each takes it from by default."""


@dataclass(frozen=True)
class LayerAdaptive(Filter, Recovery, Planned):
    """Zero single weights of the blocks' linears (or n:m groups, or blocks of weights) until `sparsity` of them are.

    An option that is None is the allocation's own; one that the allocation does not look at is refused when given.
    `resolved` says what is meant in the end.
    """

    LORA_RATE: ClassVar[float] = 1e-3

    sparsity: float | None = option(None, "Fraction of the blocks' linear weights that become zero, in [0, 1).", FIRST)
    layer_score: str | None = option(
        None,
        f"How layers are scored, for inverse-importance (fisher by default) and owl (outliers by default): "
        f"{', '.join(LAYER_SCORES)}.",
    )
    weight_score: str = option("alps", f"How weights are scored: {', '.join(WEIGHT_SCORES)}.")
    granularity: str | None = option(
        None, "What has an importance of its own, for inverse-importance: block, or linear by default."
    )
    allocation: str = option(
        AUTO, f"How the zeros are shared out: {', '.join(SPARSITY_ALLOCATIONS)}; auto is search, uniform for n:m."
    )
    importance_power: float | None = option(None, "Power of the importance in inverse-importance, 1 by default.")
    importance_strength: float | str | None = option(
        None,
        "How far inverse-importance goes from uniform (0) to the formula as it is (1, the default); auto: whichever of "
        "0, 0.25, 0.5, 0.75 and 1 diverges least from the dense model.",
    )
    min_sparsity: float | None = option(None, "Lowest sparsity of a linear, to within a weight, 0 by default.", BUDGET)
    max_sparsity: float | None = option(
        None,
        "Highest sparsity of a linear, to within a weight, 0.98 by default (or the sparsity asked, if higher).",
        BUDGET,
    )
    pattern: str = option("unstructured", "unstructured, n:m (n of m neighbours kept, like 2:4) or rxc (like 4x1).")
    steps: int = option(1, "Rounds of observing and pruning, on a cubic ramp of sparsity.")
    repair: str = option("least-squares", f"How what is left is refitted: {', '.join(WEIGHT_REPAIRS)}.")
    fast: bool = option(False, "Look at each layer once in place of once a group of linears: some 5 passes, not 7.")
    reconstruct: str = reconstruct_option()
    seed: int = option(0, "Seed of everything that is drawn.")

    def __post_init__(self) -> None:
        check_types(self)
        self.check_planned(("sparsity",))
        if self.sparsity is not None:
            check_sparsity(self)
        self.check_filter()
        check_choice("weight_score", self.weight_score, WEIGHT_SCORES)
        check_choice("allocation", self.allocation, (AUTO, *SPARSITY_ALLOCATIONS))
        check_choice("repair", self.repair, WEIGHT_REPAIRS)
        check_reconstruct(self)
        if self.repair == "none" and self.weight_score not in SOLVED:
            check_unused(self, f"weight_score {self.weight_score} and repair none", "fast")
        check_at_least(self, 1, "steps")
        self.check_recovery()
        check_seed(self)
        found, rule = self.zero_pattern, self.rule
        if isinstance(found, NByM):
            if self.keep_quality is not None:
                raise RequestError(f"keep_quality must be asked of patterns of any sparsity, got {found}")
            if rule != "uniform":
                raise RequestError(f"allocation must be uniform for pattern {found}, got {rule!r}")
            if self.steps != 1:
                raise RequestError(f"steps must be 1 for pattern {found}, got {self.steps}")
            check_unused(self, f"pattern {found}", "min_sparsity", "max_sparsity")
        self._check_importance()
        lowest, highest = self.bounds
        if not 0.0 <= lowest <= highest <= 1.0:
            bounds = f"min_sparsity {lowest:g} and max_sparsity {highest:g}"
            raise RequestError(f"min_sparsity and max_sparsity must be in order in [0, 1], got {bounds}")

    def _check_importance(self) -> None:
        if self.layer_score is not None:
            check_choice("layer_score", self.layer_score, LAYER_SCORES)
        if self.granularity is not None:
            check_choice("granularity", self.granularity, GRANULARITIES)
        if self.importance_power is not None:
            check_above_zero(self, "importance_power")
        if self.importance_strength not in (None, AUTO):
            object.__setattr__(self, "importance_strength", _strength(self.importance_strength))
        if self.rule not in _LAYER_SCORE:
            check_unused(self, f"allocation {self.rule}", "layer_score")
        if self.rule != "inverse-importance":
            check_unused(self, f"allocation {self.rule}", "granularity", "importance_power", "importance_strength")

    @property
    def zero_pattern(self) -> Pattern:
        """The pattern as a type."""
        return parse_pattern(self.pattern)

    @property
    def rule(self) -> str:
        """The allocation that is meant."""
        if self.allocation != AUTO:
            return self.allocation
        return "uniform" if isinstance(self.zero_pattern, NByM) else "search"

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest sparsity of a linear."""
        highest = max(0.98, self.sparsity or 0.0) if self.max_sparsity is None else self.max_sparsity
        return self.min_sparsity or 0.0, highest

    @property
    def budget(self) -> tuple[str, float]:
        """The kind of budget, and the fraction of zeros.

        Raises:
            RequestError: it is to be searched.
        """
        return ("sparsity", self.sparsity) if self.sparsity is not None else self.searched()

    def with_budget(self, kind: str, sparsity: float) -> LayerAdaptive:
        """The same to another budget, which is one of `sparsity`."""
        return dataclasses.replace(self, **{kind: sparsity}, keep_quality=None, tries=defaults(self)["tries"])

    @property
    def compares_rows(self) -> bool:
        """Whether the rows of a linear compete for its weights by what an error of their output costs the model."""
        return self.weight_score == "alps" and not isinstance(self.zero_pattern, NByM)

    def resolved(self) -> LayerAdaptive:
        """The same with every default written out that the allocation looks at; what it does not look at stays None."""
        inverse, free = self.rule == "inverse-importance", not isinstance(self.zero_pattern, NByM)
        lowest, highest = self.bounds
        return dataclasses.replace(
            self,
            allocation=self.rule,
            layer_score=self.layer_score or _LAYER_SCORE.get(self.rule),
            granularity=self.granularity or ("linear" if inverse else None),
            importance_power=self.importance_power or (1.0 if inverse else None),
            importance_strength=1.0 if inverse and self.importance_strength is None else self.importance_strength,
            min_sparsity=lowest if free else None,
            max_sparsity=highest if free else None,
        )


def _strength(given: float | str | None) -> float:
    """The strength as a number; the command gives text.

    Raises:
        RequestError: it is none from 0 to 1.
    """
    try:
        strength = float(given or 0.0)
    except ValueError:
        strength = float("nan")
    if not 0 <= strength <= 1:
        raise RequestError(f"importance_strength must be 0 to 1 or {AUTO}, got {given}")
    return strength
