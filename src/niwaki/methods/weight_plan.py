"""The plan of layer-adaptive pruning: what the allocation knows of every linear, and how many zeros each is to get."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Self

from rich.table import Table
from torch import Tensor, nn

from niwaki.allocation.profiles import importance_that_decided
from niwaki.allocation.sparsity import (
    SPARSITY_ALLOCATORS,
    Curve,
    LinearProfile,
    Profiles,
    check_budget,
    possible_sparsities,
    possible_zeros,
    towards_uniform,
    whole_blocks,
)
from niwaki.anatomy import linears_of
from niwaki.config import LayerAdaptive
from niwaki.config.layer_adaptive import AUTO
from niwaki.config.patterns import Block, NByM
from niwaki.config.planned import check_plannable
from niwaki.errors import RequestError, check_choice, check_kind
from niwaki.methods.plan import Plan, check_same_scores
from niwaki.numerics.decimals import shown_least

SCORED_BY = (
    *("layer_score", "weight_score", "granularity", "allocation", "pattern", "min_sparsity", "seed"),
    *("keep_layers", "only", "spared"),
)
"""What a request may not change once the profiles are there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightPlan(Plan):
    """How many weights of each linear become zero.

    `config` is as it was asked, `strength` the importance strength that was found where it is auto. Of each linear,
    `zeros` are to be in all, and `profiles` are what the allocation knows. `curves` are the losses that were measured
    for other sparsities than its own, by sparsity. The hand has given the linears of `ratios` theirs.
    """

    KIND: ClassVar[str] = "layer-adaptive"

    config: LayerAdaptive
    profiles: Profiles
    curves: dict[float, dict[str, Curve]] = field(default_factory=dict)
    strength: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)

    @property
    def meant(self) -> LayerAdaptive:
        """The request with every default written out, and the strength that was found."""
        meant = self.config.resolved()
        found = self.strength if meant.importance_strength == AUTO else meant.importance_strength
        return dataclasses.replace(meant, importance_strength=found)

    @property
    def importance(self) -> dict[str, float]:
        """What the allocation went by, of each linear as a part of the whole."""
        return importance_that_decided(self.config.rule, self.profiles)

    def at(self, *, sparsity: float) -> WeightPlan:
        """The plan for another sparsity; nothing is observed or scored anew.

        Losses that were measured for this sparsity are gone by; for others, all that were measured.

        Raises:
            RequestError: the bounds cannot meet it.
        """
        return self.under(self.config.with_budget("sparsity", sparsity))

    def keeping(self, part: float) -> WeightPlan:
        return self.at(sparsity=1 - part)

    @property
    def span(self) -> tuple[float, float]:
        least, most = possible_sparsities(self._by_hand())
        return 1 - most, 1 - least

    def edit(self, *, sparsity: Mapping[str, float]) -> WeightPlan:
        """The plan in which these linears have these ratios of zeros, to within one weight (or one block).

        Names are those of linears, such as `layer.0.up`, or of layers, `layer.0`; also of such as the request spares.
        The sparsity of all is what it was: the other linears make up for it, also under `at`. What was named before is
        still held to.

        Raises:
            RequestError: an unknown name, a ratio that is none or below the zeros that are there; a sparsity of all
                that cannot be met; a pattern n:m.
        """
        if isinstance(self.config.zero_pattern, NByM):
            raise RequestError(f"edit must be of a plan whose linears may differ, got pattern {self.config.pattern}")
        check_kind("sparsity", sparsity, Mapping, "a mapping of linears or layers to ratios of zeros")
        found = dict(self.ratios)
        for name, ratio in sparsity.items():
            check_kind(f"sparsity of {name}", ratio, Real, "a ratio of zeros in [0, 1]")
            named = [linear for linear in self.profiles if linear == name or linear.startswith(f"{name}.")]
            if not named:
                check_choice("sparsity of", name, self.profiles)
            if not 0.0 <= ratio <= 1.0:
                raise RequestError(f"sparsity of {name} must be a ratio of zeros in [0, 1], got {ratio:g}")
            found |= dict.fromkeys(named, float(ratio))
        return dataclasses.replace(self, ratios=found).under(self.config)

    def under(self, config: LayerAdaptive) -> WeightPlan:
        """The plan for another request with the same scores.

        Raises:
            RequestError: other scores, bounds or seed are asked than the plan has, a sparsity that cannot be met.
        """
        own, asked = self.config.resolved(), config.resolved()
        check_same_scores(own, asked, SCORED_BY)
        check_plannable(config, "plan")
        if self.config.max_sparsity != config.max_sparsity:
            rule = f"max_sparsity must be {self.config.max_sparsity}, which the plan was made with"
            raise RequestError(f"{rule}, got {config.max_sparsity}")
        if asked.importance_strength == AUTO and self.strength is None:
            raise RequestError("importance_strength must be a number, as the plan has not searched it, got 'auto'")
        changed = dataclasses.replace(self, config=config)
        profiles = {name: changed._with_room(profile) for name, profile in self.profiles.items()}
        if config.rule == "search":
            curves = self._curves_for(config.budget[1])
            profiles = {name: dataclasses.replace(each, curve=curves[name]) for name, each in profiles.items()}
        changed = dataclasses.replace(changed, profiles=profiles, curves=self._measured)
        return dataclasses.replace(changed, zeros=changed.zeros_for(config.budget[1]))

    def _with_room(self, profile: LinearProfile) -> LinearProfile:
        """A profile whose upper bound is that of the request, where it may be cut at all."""
        if profile.fixed:
            return profile
        return dataclasses.replace(profile, high=max(self.config.bounds[1], profile.low))

    @property
    def _measured(self) -> dict[float, dict[str, Curve]]:
        """All curves by the sparsity that they were measured around."""
        if self.config.rule != "search" or self.config.budget[1] in self.curves:
            return self.curves
        return {self.config.budget[1]: {name: profile.curve for name, profile in self.profiles.items()}, **self.curves}

    def _curves_for(self, sparsity: float) -> dict[str, Curve]:
        """The curves around a sparsity, where they were measured; else through all points of all of them."""
        measured = self._measured
        if sparsity in measured:
            return measured[sparsity]
        return {
            name: tuple(sorted({point for curves in measured.values() for point in curves[name]}))
            for name in self.profiles
        }

    def zeros_for(self, sparsity: float) -> dict[str, int]:
        """The number of zeros of every linear, in all exactly those of `sparsity`, of blocks to less than one block.

        Raises:
            RequestError: what the hand gave single linears leaves no way to meet it.
        """
        config, profiles = self.meant, self._by_hand()
        pattern = config.zero_pattern
        if isinstance(pattern, NByM):
            found = {name: profile.size // pattern.m * (pattern.m - pattern.n) for name, profile in profiles.items()}
            # Where more are zero already, the groups have at least as many.
            return {n: max(0 if profiles[n].fixed else zeros, profiles[n].fewest) for n, zeros in found.items()}
        # An early step of a ramp asks for no fewer zeros than the bounds and the zeros that are there already.
        least, _ = possible_zeros(profiles)
        wanted = round(sparsity * sum(profile.size for profile in profiles.values()))
        check_budget(profiles, max(wanted, least) if config.steps > 1 else wanted, config.told)
        found = SPARSITY_ALLOCATORS[config.rule](profiles, max(wanted, least), config.importance_power or 1.0)
        strength = config.importance_strength
        found = towards_uniform(found, profiles, strength) if isinstance(strength, float) else found
        return whole_blocks(found, pattern.size, profiles) if isinstance(pattern, Block) else found

    def _by_hand(self) -> Profiles:
        """The profiles, those that the hand has given a ratio held to it."""
        found = dict(self.profiles)
        for name, ratio in self.ratios.items():
            if ratio < found[name].low:
                least = f"{shown_least(found[name].low):.4g}"
                raise RequestError(f"sparsity of {name} must be at least {least}, got {ratio:g}")
            found[name] = dataclasses.replace(found[name], low=ratio, high=ratio, fixed=False)
        return found

    @property
    def achieved(self) -> float:
        """The fraction of all weights that become zero."""
        return sum(self.zeros.values()) / sum(profile.size for profile in self.profiles.values())

    def table(self) -> Table:
        """One row a layer: the sparsity of each linear, and the layer's part of all importance."""
        total = sum(profile.size for profile in self.profiles.values())
        title = f"What goes: {sum(self.zeros.values()):,} of {total:,} weights"
        parts = list(dict.fromkeys(name.rpartition(".")[2] for name in self.profiles))
        table = Table("layer", *parts, "importance", title=title)
        share = self.importance
        by_layer: dict[str, dict[str, str]] = {}
        for name, profile in self.profiles.items():
            layer, _, part = name.rpartition(".")
            by_layer.setdefault(layer, {})[part] = f"{self.zeros[name] / profile.size:.3f}"
        for layer, cells in by_layer.items():
            whole = sum(value for name, value in share.items() if name.startswith(f"{layer}."))
            row = (cells.get(part, "") for part in parts)
            table.add_row(layer.removeprefix("layer."), *row, f"{whole:.3f}")
        return table

    def check_fits(self, model: nn.Module) -> None:
        ours = {name: profile.shape for name, profile in self.profiles.items()}
        theirs = {linear.name: linear.shape for linear in linears_of(model)}
        for name in {**theirs, **ours}:
            if ours.get(name) != theirs.get(name):
                told = f"{theirs.get(name, 'nothing')} as the shape of {name}, got {ours.get(name, 'nothing')}"
                raise RequestError(f"plan must be of this model, with {told}")

    def _to_file(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        share, linears = self.importance, {}
        for name, profile in self.profiles.items():
            plain = {key: getattr(profile, key) for key in ("shape", "low", "high", "fixed", "importance", "curve")}
            linears[name] = {"zeros": self.zeros[name], "share": share[name], **plain}
            for key in ("scores", "weights"):
                if (value := getattr(profile, key)) is not None:
                    tensors[f"{key}/{name}"] = value.detach().contiguous()
        curves = [[sparsity, by_name] for sparsity, by_name in self.curves.items()]
        plain = {"achieved": self.achieved, "linears": linears, "curves": curves}
        return plain | {"strength": self.strength, "ratios": self.ratios}, tensors

    @classmethod
    def _from_file(cls, plain: dict[str, Any], tensors: dict[str, Tensor], common: dict[str, Any]) -> Self:
        profiles = {
            name: LinearProfile(
                shape=(int(each["shape"][0]), int(each["shape"][1])),
                low=each["low"],
                high=each["high"],
                fixed=each["fixed"],
                importance=each["importance"],
                scores=tensors.get(f"scores/{name}"),
                weights=tensors.get(f"weights/{name}"),
                curve=_curve(each["curve"]),
            )
            for name, each in plain["linears"].items()
        }
        return cls(
            **common,
            profiles=profiles,
            curves={float(at): {name: _curve(x) for name, x in each.items()} for at, each in plain["curves"]},
            strength=plain["strength"],
            ratios=plain["ratios"],
            zeros={name: int(each["zeros"]) for name, each in plain["linears"].items()},
        )


def _curve(points: list[list[float]]) -> Curve:
    return tuple((float(at), float(loss)) for at, loss in points)
