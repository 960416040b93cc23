"""What a budget counts: the cost of every width of every site, of all sites together, and what no site owns.

`flops` and `params` are exact and count the transformer blocks; `latency` is measured, in milliseconds, and is that of
the whole model. A budget is met when `fixed + cost of what is kept <= fraction * total`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from niwaki.allocation import Bounds, least_cost
from niwaki.anatomy import (
    Site,
    Units,
    check_units,
    common_flops,
    common_params,
    count,
    sites_of,
    unit_flops,
    unit_params,
)
from niwaki.config import Structured
from niwaki.errors import RequestError
from niwaki.evaluate import latency_table
from niwaki.numerics.decimals import shown_least

ALIGNED, STEPS = 64, 24
"""Neurons come in multiples of up to `ALIGNED` by default, but a site may have `STEPS` widths at least: matrix products
are fastest where their sizes fill the tiles of the hardware."""


@dataclass(frozen=True, eq=False)
class Budget:
    """Costs of one kind. `costs` is `[units + 1]` for each site by name; `fraction` is what to keep.

    `group_savings` has, for each site whose units lie in groups, how many these were, and what each that goes whole
    saves beside its units.
    """

    kind: str
    fraction: float
    costs: dict[str, Tensor]
    fixed: float
    group_savings: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Cost of the model as it came in."""
        return self.fixed + sum(float(costs[-1]) for costs in self.costs.values())

    def kept(self, sites: Sequence[Units]) -> float:
        """Fraction of the total that these sites cost."""
        return (self.fixed + sum(float(self.costs_of(site)[-1]) for site in sites)) / self.total

    def costs_of(self, site: Units) -> Tensor:
        """`[units + 1]`: what 0, 1, ... units of a site cost as it stands, some of its groups gone, perhaps."""
        costs = self.costs[site.name][: site.units + 1].clone()
        if site.name in self.group_savings:
            before, saved = self.group_savings[site.name]
            # Where every group has one head left in all layers, each is a unit of its own from then on.
            left = site.groups if site.in_groups else torch.arange(1, site.units + 1)
            costs[1:] -= saved * (before - left)
        return costs

    def left_for_sites(self, fraction: float) -> float:
        """What the sites may cost together when `fraction` of the total is kept."""
        return fraction * self.total - self.fixed

    def least(self, bounds: dict[str, Bounds]) -> float:
        """The least fraction that the minimum widths allow, and that leaves a head or a neuron at all."""
        cost = least_cost(bounds)
        if not any(bound.shapes[0].units for bound in bounds.values()):
            cost = min(b.cost(1) if b.remainder else b.shapes[1].cost for b in bounds.values() if b.units)
        return (self.fixed + cost) / self.total

    def most(self, bounds: dict[str, Bounds]) -> float:
        """The greatest fraction that the bounds allow."""
        return (self.fixed + sum(float(bound.costs[-1]) for bound in bounds.values())) / self.total

    def check(self, bounds: dict[str, Bounds], spared: str = "") -> None:
        """Refuse a fraction below the least; `spared` says in words what the bounds leave alone.

        Raises:
            RequestError: naming the least fraction that can be asked.
        """
        least = self.least(bounds)
        if self.fraction < least - 1e-12:
            rule = f"{self.kind} must be at least {shown_least(least):.4f} with these minimum widths{spared}"
            raise RequestError(f"{rule}, got {self.fraction:g}")


def budget_of(model: nn.Module, config: Structured, length: float) -> Budget:
    """The budget that `config` asks for. `length` is the mean number of real tokens of a calibration row.

    Raises:
        RequestError: nothing is left to prune, or the minimum widths are wider than all layers.
    """
    kind, fraction = config.budget
    check_units(model)
    sites = sites_of(model, config.by_query_head)
    check_widths(sites, config)
    if kind == "latency":
        table = latency_table(model, config.latency_batch_size, config.latency_length, config.latency_engine)
        return Budget(kind, fraction, table.costs, table.fixed)
    return counted_budget(model, sites, kind, fraction, length)


def counted_budget(model: nn.Module, sites: list[Site], kind: str, fraction: float, length: float) -> Budget:
    """A budget of `flops` or `params`, whose costs follow from the shapes of the sites."""
    costs, savings = {}, {}
    for site in sites:
        unit = unit_flops(site, length) if kind == "flops" else float(unit_params(site))
        common = common_flops(site, length) if kind == "flops" else float(common_params(site))
        costs[site.name] = Bounds.linear(unit, site.units, 0).costs
        costs[site.name][1:] += common
        if site.in_groups:
            savings[site.name] = site.groups, common / site.groups
    # Norms and output biases are parameters that no site owns.
    owned = sum(float(cost[-1]) for cost in costs.values())
    fixed = count(model, length).block_params - owned if kind == "params" else 0.0
    return Budget(kind, fraction, costs, fixed, savings)


def budgets_of(model: nn.Module, config: Structured, length: float) -> dict[str, Budget]:
    """By kind, the budget that `config` asks for (see `budget_of`), and what can be counted of the model."""
    asked = budget_of(model, config, length)
    sites = sites_of(model, config.by_query_head)
    counted = {kind: counted_budget(model, sites, kind, 1.0, length) for kind in ("flops", "params")}
    return counted | {asked.kind: asked}


def check_widths(sites: list[Site], config: Structured) -> None:
    """Refuse minimum widths that no layer has.

    Raises:
        RequestError: naming the widest layer.
    """
    for name, kind in (("min_heads", "attention"), ("min_neurons", "ffn"), ("round_to", "ffn")):
        widest = max(site.units for site in sites if site.kind == kind)
        # A layer that is narrower than others keeps all it has; one with nothing left asks for nothing.
        if widest and (getattr(config, name) or 0) > widest:
            what = "heads" if kind == "attention" else "neurons"
            rule = f"{name} must be at most {widest}, the {what} of the widest layer"
            raise RequestError(f"{rule}, got {getattr(config, name)}")


def bounds_of(sites: Sequence[Units], budget: Budget, config: Structured) -> dict[str, Bounds]:
    """Costs, minimum widths and multiples of every site as it stands."""
    bounds = {}
    for site in sites:
        costs = budget.costs_of(site)
        if not config.may_cut(site):
            bounds[site.name] = Bounds(costs, site.units, site.groups, groups=site.groups)
        elif site.kind == "attention":
            least = site.units if site.fixed else config.min_heads
            saved = budget.group_savings[site.name][1] if site.in_groups and config.by_group else None
            bounds[site.name] = Bounds(costs, least, site.groups, groups=site.groups, group_cost=saved)
        else:
            exact = config.round_to is None and budget.kind != "latency"
            bounds[site.name] = Bounds(costs, config.min_neurons, config.round_to or aligned(site.units), exact)
    return bounds


def aligned(units: int) -> int:
    """The power of two of which a site with so many neurons keeps multiples, 8 to `ALIGNED`."""
    multiple = 8
    while multiple < ALIGNED and 2 * multiple * STEPS <= units:
        multiple *= 2
    return multiple
