"""The plan of structured pruning: scores of all heads and neurons, and which of them stay for a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from rich.table import Table
from torch import Tensor, nn

from niwaki.allocation import ALLOCATORS, Bounds
from niwaki.allocation.budget import Budget, bounds_of, counted_budget
from niwaki.anatomy import Units, sites_of
from niwaki.config import Structured
from niwaki.config.planned import check_plannable
from niwaki.errors import RequestError, check_choice, check_kind
from niwaki.methods.plan import Plan, check_same_scores
from niwaki.numerics.decimals import shown_most
from niwaki.surgery import Kept

SCORED_BY = ("head_score", "neuron_score", "seed")
"""What a request may not change once the scores are there, nor what a unit is where keys are shared."""

ByHand = Mapping[str, Sequence[int]]
"""Site name -> indices of units."""


def importances(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Each site's share of all scores, a number in [0, 1]."""
    total = sum(float(score.sum()) for score in scores.values()) or 1.0
    return {name: float(score.sum()) / total for name, score in scores.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitPlan(Plan):
    """Which heads and neurons stay.

    `config` is resolved. `scores` are `[units]` for each of `sites` by name, `budgets` what a width of each costs, by
    kind. Of the units that the hand has named, those of `keep` stay and those of `drop` go, whatever the budget.
    `shares_keys` says whether query heads share keys and values: only then does it matter what `head_unit` is.
    """

    KIND: ClassVar[str] = "structured"

    config: Structured
    sites: tuple[Units, ...]
    scores: dict[str, Tensor]
    budgets: dict[str, Budget]
    kept: Kept = field(default_factory=dict)
    keep: dict[str, list[int]] = field(default_factory=dict)
    drop: dict[str, list[int]] = field(default_factory=dict)
    shares_keys: bool = True

    @property
    def importance(self) -> dict[str, float]:
        """Each site's share of all scores."""
        return importances(self.scores)

    @property
    def budget(self) -> Budget:
        """What the request counts, and how much of it is to be kept."""
        kind, fraction = self.config.budget
        return dataclasses.replace(self.budgets[kind], fraction=fraction)

    def at(self, *, flops: float | None = None, params: float | None = None) -> UnitPlan:
        """The plan for another budget, one of these; nothing is observed or scored anew.

        Raises:
            RequestError: not exactly one budget, or one that the minimum widths do not allow.
        """
        given = {kind: value for kind, value in (("flops", flops), ("params", params)) if value is not None}
        if len(given) != 1:
            raise RequestError(
                f"budget: exactly one of flops, params must be given, got {' and '.join(given) or 'none'}"
            )
        return self.under(self.config.with_budget(*next(iter(given.items()))))

    def keeping(self, part: float) -> UnitPlan:
        return self.at(flops=part)

    @property
    def span(self) -> tuple[float, float]:
        budget = self.budgets["flops"]
        bounds = bounds_of(self.sites, budget, self.config)
        bounds |= {name: self._by_hand(name, bounds[name])[2] for name in {**self.keep, **self.drop}}
        return budget.least(bounds), min(budget.most(bounds), 1.0)

    def at_length(self, model: nn.Module, length: float) -> UnitPlan:
        sites, before = sites_of(model, self.config.by_query_head), self.budgets["flops"]
        counted = counted_budget(model, sites, "flops", before.fraction, length)
        if all(torch.equal(costs, before.costs[name]) for name, costs in counted.costs.items()):
            return self
        changed = dataclasses.replace(self, budgets={**self.budgets, "flops": counted})
        kind, fraction = self.config.budget
        return dataclasses.replace(changed, kept=changed.kept_for(fraction)) if kind == "flops" else changed

    def edit(self, *, keep: ByHand | None = None, drop: ByHand | None = None) -> UnitPlan:
        """The plan in which these units stay, or go, by site name, such as `{"layer.0.attention": [3]}`.

        The budget is what it was: other units go, or stay, instead, also under `at`; one of 1.0 asks for nothing but
        what is dropped here. What was named before is still held to, unless it is named anew.

        Raises:
            RequestError: an unknown site, a unit that is not there or is to stay and to go, query heads of a group
                (plan with head_unit group), heads that cannot be removed; what is left does not meet the budget.
        """
        ours = {"keep": {**self.keep, **_listed(keep)}, "drop": {**self.drop, **_listed(drop)}}
        sites = {site.name: site for site in self.sites}
        for word, named in ours.items():
            for name, units in named.items():
                check_choice(f"{word} site", name, sites)
                _check_hand(sites[name], word, units)
        for name, units in ours["keep"].items():
            if both := sorted({*units} & {*ours["drop"].get(name, ())}):
                raise RequestError(f"{name}: a unit must be in keep or in drop, got {both[0]} in both")
        return dataclasses.replace(self, **ours).under(self.config)

    def under(self, config: Structured) -> UnitPlan:
        """The plan for another request with the same scores.

        Raises:
            RequestError: other scores, units or seed are asked than the plan has, a budget that is measured and not
                counted, one that cannot be met.
        """
        meant = config.resolved()
        check_same_scores(self.config, meant, (*SCORED_BY, *["head_unit"] * self.shares_keys))
        check_plannable(meant, "plan")
        kind, fraction = meant.budget
        if kind == "latency":
            rule = (
                "budget must be one of flops, params for a plan that is there: a cut to a latency is timed on the model"
            )
            raise RequestError(f"{rule}, got latency {fraction:g}")
        changed = dataclasses.replace(self, config=meant)
        return dataclasses.replace(changed, kept=changed.kept_for(fraction))

    def kept_for(self, fraction: float) -> Kept:
        """The units that stay for a `fraction` of the budget.

        Raises:
            RequestError: what must stay costs more than all of the budget, or what may stay less.
        """
        budget = self.budget
        bounds = bounds_of(self.sites, budget, self.config)
        scores, named = dict(self.scores), {}
        for name in {**self.keep, **self.drop}:
            named[name], scores[name], bounds[name] = self._by_hand(name, bounds[name])
        budget.check(bounds, self.config.told)
        if fraction < 1.0 and self.drop:
            _check_most(dataclasses.replace(budget, fraction=fraction), bounds)
        found = ALLOCATORS[self.config.allocation](scores, bounds, budget.left_for_sites(fraction))
        return found | {name: units[found[name]] for name, units in named.items()}

    def _by_hand(self, name: str, bounds: Bounds) -> tuple[Tensor, Tensor, Bounds]:
        """Of a site that the hand touched: the units that may stay, their scores, and what may be kept of them.

        What is to stay comes first in the order of scores and is the least that is kept, so its scores decide nothing.
        """
        keep, drop = ({*named.get(name, ())} for named in (self.keep, self.drop))
        units = torch.tensor([unit for unit in range(bounds.units) if unit not in drop], dtype=torch.long)
        scores = self.scores[name][units].clone()
        first = torch.tensor([unit in keep for unit in units.tolist()], dtype=torch.bool)
        scores[first] += self.scores[name].max() + 1
        least = max(bounds.minimum, len(keep))
        return units, scores, dataclasses.replace(bounds, costs=bounds.costs[: len(units) + 1], minimum=least)

    @property
    def achieved(self) -> float:
        """The fraction of the budget's cost that stays."""
        after = [dataclasses.replace(site, **_left(site, self.kept[site.name])) for site in self.sites]
        return self.budget.kept(after)

    def table(self) -> Table:
        """One row a layer: heads and neurons kept of total, and the importance (share of all scores) of each part."""
        kinds = {"attention": "heads", "ffn": "neurons"}
        kept = {kind: sum(len(self.kept[site.name]) for site in self.sites if site.kind == kind) for kind in kinds}
        total = {kind: sum(site.units for site in self.sites if site.kind == kind) for kind in kinds}
        title = ", ".join(f"{kept[kind]} of {total[kind]} {name}" for kind, name in kinds.items())
        table = Table("layer", "heads", "importance", "neurons", "importance", title=f"What stays: {title}")
        share = self.importance
        by_layer: dict[int, list[str]] = {}
        for site in self.sites:
            cells = [f"{len(self.kept[site.name])} / {site.units}", f"{share[site.name]:.3f}"]
            by_layer.setdefault(site.layer, [str(site.layer)]).extend(cells)
        for cells in by_layer.values():
            table.add_row(*cells)
        return table

    def check_fits(self, model: nn.Module) -> None:
        ours, theirs = ([dataclasses.asdict(site) for site in sites] for sites in (self.sites, self._sites_of(model)))
        if len(ours) != len(theirs):
            raise RequestError(f"plan must be of this model, with {len(theirs)} sites, got one of {len(ours)}")
        for own, other in zip(ours, theirs, strict=True):
            if own != other:
                told = f"{other['units']} units, got {own['units']}"
                raise RequestError(f"plan must be of this model: {other['name']} has {told}")
        counted = counted_budget(model, sites_of(model, self.config.by_query_head), "params", 1.0, 1.0)
        for name, costs in counted.costs.items():
            of_plan, of_model = (int(each[-1]) for each in (self.budgets["params"].costs[name], costs))
            if of_plan != of_model:
                raise RequestError(f"plan must be of this model: {name} has {of_model} parameters, got {of_plan}")

    def _sites_of(self, model: nn.Module) -> list[Units]:
        return [site.counted for site in sites_of(model, self.config.by_query_head)]

    def _to_file(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"scores/{name}": score for name, score in self.scores.items()}
        tensors |= {f"costs/{kind}/{name}": x for kind, each in self.budgets.items() for name, x in each.costs.items()}
        plain = {
            "achieved": self.achieved,
            "sites": [dataclasses.asdict(site) | {"kept": self.kept[site.name].tolist()} for site in self.sites],
            "importance": self.importance,
            "budgets": {
                kind: {"fraction": each.fraction, "fixed": each.fixed, "group_savings": each.group_savings}
                for kind, each in self.budgets.items()
            },
            "keep": self.keep,
            "drop": self.drop,
            "shares_keys": self.shares_keys,
        }
        return plain, tensors

    @classmethod
    def _from_file(cls, plain: dict[str, Any], tensors: dict[str, Tensor], common: dict[str, Any]) -> Self:
        kept = {site["name"]: torch.tensor(site.pop("kept"), dtype=torch.long) for site in plain["sites"]}
        sites = tuple(Units(**site) for site in plain["sites"])
        budgets = {}
        for kind, each in plain["budgets"].items():
            costs = {site.name: tensors[f"costs/{kind}/{site.name}"] for site in sites}
            savings = {name: (int(groups), float(cost)) for name, (groups, cost) in each["group_savings"].items()}
            budgets[kind] = Budget(kind, each["fraction"], costs, each["fixed"], savings)
        scores = {site.name: tensors[f"scores/{site.name}"] for site in sites}
        for site in sites:
            units = kept[site.name]
            if scores[site.name].shape != (site.units,) or (
                len(units) and not 0 <= int(units[0]) <= int(units[-1]) < site.units
            ):
                raise ValueError(f"{site.name} has other units than its {site.units}")
        rest = {"keep": plain["keep"], "drop": plain["drop"], "shares_keys": plain.get("shares_keys", True)}
        return cls(**common, sites=sites, scores=scores, budgets=budgets, kept=kept, **rest)


def _check_most(budget: Budget, bounds: Mapping[str, Bounds]) -> None:
    """Refuse a budget that is missed by more than a unit when all stays that may.

    Raises:
        RequestError: naming the most that can be asked.
    """
    unit = max(float(bound.costs[-1] - bound.costs[-2]) for bound in bounds.values() if bound.units)
    most = budget.most(dict(bounds))
    if budget.fraction > most + unit / budget.total:
        rule = f"{budget.kind} must be at most {shown_most(most):.4f} with the units that are dropped by hand"
        raise RequestError(f"{rule} (or 1, for nothing but these), got {budget.fraction:g}")


def _listed(by_hand: ByHand | None) -> dict[str, list[int]]:
    """Units by site, in order.

    Raises:
        RequestError: no mapping, no list of whole numbers.
    """
    check_kind("keep and drop", by_hand or {}, Mapping, "mappings of sites to units")
    found = {}
    for name, units in (by_hand or {}).items():
        listed = units.tolist() if isinstance(units, Tensor) else units
        if isinstance(listed, str) or not isinstance(listed, Iterable):
            raise RequestError(f"{name}: units must be a list of whole numbers, got {units!r}")
        listed = [*listed]
        if wrong := [unit for unit in listed if isinstance(unit, bool) or not isinstance(unit, Integral)]:
            raise RequestError(f"{name}: units must be a list of whole numbers, got {wrong[0]!r} in it")
        found[name] = sorted({int(unit) for unit in listed})
    return found


def _check_hand(site: Units, word: str, units: list[int]) -> None:
    """Refuse units that are not there, or that do not come or go one by one."""
    if outside := [unit for unit in units if not 0 <= unit < site.units]:
        raise RequestError(f"{word} of {site.name} must be units 0 to {site.units - 1}, got {outside[0]}")
    if site.groups > 1:
        rule = f"{word} of {site.name} must be of a plan with head_unit group: every group keeps as many query heads"
        raise RequestError(f"{rule}, got {len(units)} of them")
    if word == "drop" and units and site.fixed:
        raise RequestError(f"drop of {site.name} must be empty: its heads cannot be removed, got {units[0]}")


def _left(site: Units, kept: Tensor) -> dict[str, int]:
    """How many units and groups of a site stay."""
    groups = len((kept // (site.units // site.groups)).unique()) if site.in_groups and len(kept) else site.groups
    return {"units": len(kept), "groups": groups}
