"""What structured pruning can be asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from niwaki.config.engine import ENGINES
from niwaki.config.fields import BUDGET, FIRST, check_at_least, check_seed, check_unused, defaults, option
from niwaki.config.filter import Filter
from niwaki.config.planned import Planned
from niwaki.config.reconstruct import check_reconstruct, reconstruct_option
from niwaki.config.recovery import Recovery
from niwaki.config.types import check_types
from niwaki.errors import RequestError, check_choice

HEAD_SCORES = ("attention-variance", "activation-variance", "fisher", "taylor", "reconstruction", "random")
HEAD_UNITS = ("auto", "both", "group", "query-head")
NEURON_SCORES = ("activation", "activation-variance", "fisher", "taylor", "reconstruction", "random")
ALLOCATIONS = ("global", "uniform")
REPAIRS = ("none", "bias", "least-squares")
BUDGETS = ("flops", "params", "latency")
_OF_LATENCY = ("latency_batch_size", "latency_length", "latency_engine")
"""Options that a budget in latency alone looks at."""
_OF_OTHER_PART = {
    "attention": ("neuron_score", "round_to", "min_neurons"),
    "ffn": ("head_score", "head_unit", "min_heads"),
}
"""Options that are not looked at where only one part is cut."""


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """What heads are, and how heads and neurons are scored."""

    head_score: str = option("reconstruction", f"How heads are scored: {', '.join(HEAD_SCORES)}.")
    neuron_score: str = option("reconstruction", f"How neurons are scored: {', '.join(NEURON_SCORES)}.")

    head_unit: str = option(
        "auto",
        "What a head is under grouped queries: group (a key/value head with its query heads), query-head (every group "
        "keeps as many) or both, which compete; auto is both where something is cut, but group for a latency budget "
        "and for uniform widths.",
    )

    def __post_init__(self) -> None:
        check_choice("head_score", self.head_score, HEAD_SCORES)
        check_choice("neuron_score", self.neuron_score, NEURON_SCORES)
        check_choice("head_unit", self.head_unit, HEAD_UNITS)

    @property
    def by_query_head(self) -> bool:
        """Whether query heads go one by one, where several share a key and a value head."""
        return self.head_unit in ("query-head", "both")

    @property
    def by_group(self) -> bool:
        """Whether whole groups of query heads go."""
        return self.head_unit != "query-head"


@dataclass(frozen=True)
class Structured(UnitScores, Filter, Recovery, Planned):
    """Remove whole attention heads and FFN neurons until a budget is met.

    Exactly one of `flops`, `params` (of the transformer blocks) and `latency` (of the whole model, as measured on this
    machine, in `latency_engine`) is given: the fraction to KEEP, in (0, 1]. Or `keep_quality`, for the least FLOPs that
    do.
    """

    LORA_RATE: ClassVar[float] = 3e-4

    flops: float | None = option(None, "Fraction of the blocks' FLOPs to KEEP, in (0, 1].", FIRST)
    params: float | None = option(None, "Fraction of the blocks' parameters to KEEP, in (0, 1].", BUDGET)
    latency: float | None = option(None, "Fraction of the measured latency to KEEP, in (0, 1].", BUDGET)
    allocation: str = option("global", f"How the budget is shared out: {', '.join(ALLOCATIONS)}.")
    repair: str = option("least-squares", f"How what is left is refitted: {', '.join(REPAIRS)}.")
    reconstruct: str = reconstruct_option()
    steps: int = option(1, "Observations, each followed by a part of the cut, so that later scores see earlier cuts.")
    round_to: int | None = option(
        None,
        "Keep neurons in multiples of this; by default of 8 to 64 by the width, but for a last few.",
    )
    min_heads: int = option(
        1, "Heads (units as in head_unit) that every layer keeps; 0 lets a layer lose its whole attention."
    )
    min_neurons: int = option(1, "Neurons that every layer keeps; 0 lets a layer lose its whole FFN.")
    drop_layers: int = option(0, "Layers that go whole, those that change what passes through them least.")
    latency_batch_size: int = option(32, "Rows in a batch for the latency budget.", BUDGET)
    latency_length: int = option(64, "Tokens in a row for the latency budget.", BUDGET)
    latency_engine: str = option("pytorch", f"Where the latency budget is measured: {', '.join(ENGINES)}.", BUDGET)
    seed: int = option(0, "Seed of everything that is drawn.")

    def __post_init__(self) -> None:
        check_types(self)
        self.check_planned(BUDGETS)
        if self.keep_quality is None:
            kind, value = self.budget
            if not 0.0 < value <= 1.0:
                raise RequestError(f"{kind} must be a fraction to keep in (0, 1], got {value:g}")
        if self.latency is not None and self.plan is not None:
            rule = "plan must be given with flops or params"
            raise RequestError(f"{rule}: a cut to a latency is timed on this model, got latency {self.latency:g}")
        super().__post_init__()
        self.check_filter()
        if self.drop_layers and (self.keep_layers or self.only or self.spared):
            raise RequestError(f"drop_layers must be 0 where sites are spared, got {self.drop_layers}")
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("repair", self.repair, REPAIRS)
        check_choice("latency_engine", self.latency_engine, ENGINES)
        check_reconstruct(self)
        if self.latency is not None and self.head_unit not in ("auto", "group"):
            raise RequestError(f"head_unit must be 'group' with a latency budget, got {self.head_unit!r}")
        if self.allocation == "uniform" and self.head_unit == "both":
            raise RequestError("head_unit must be 'group' or 'query-head' with allocation uniform, got 'both'")
        check_at_least(self, 1, "steps", "latency_batch_size", "latency_length")
        check_at_least(self, 0, "min_heads", "min_neurons", "drop_layers")
        self.check_recovery()
        check_seed(self)
        if self.round_to is not None:
            check_at_least(self, 1, "round_to")
        if self.only is not None:
            check_unused(self, f"only {self.only}", *_OF_OTHER_PART[self.only])
        if self.latency is None:
            kind = "keep_quality" if self.keep_quality is not None else self.budget[0]
            check_unused(self, f"a budget in {kind}", *_OF_LATENCY)

    def resolved(self) -> Structured:
        """The same with the units that are meant written out; the latency of single query heads is not measured."""
        if self.only == "ffn":
            return self
        auto = "both" if self.latency is None and self.allocation == "global" else "group"
        return dataclasses.replace(self, head_unit=auto if self.head_unit == "auto" else self.head_unit)

    @property
    def budget(self) -> tuple[str, float]:
        """The one budget that was given: its kind and the fraction to keep.

        Raises:
            RequestError: it is to be searched.
        """
        found = [(kind, value) for kind in BUDGETS if (value := getattr(self, kind)) is not None]
        return found[0] if found else self.searched()

    def with_budget(self, kind: str, fraction: float) -> Structured:
        """The same to another budget."""
        budgets = {**dict.fromkeys(BUDGETS), "keep_quality": None, kind: fraction}
        own = () if kind == "latency" else _OF_LATENCY
        unused = {name: value for name, value in defaults(self).items() if name in ("tries", *own)}
        return dataclasses.replace(self, **budgets | unused)
