"""One threshold for all sites: units stay in order of score per cost until the budget is used up.

For each site let V(k) be the sum of its k best scores and C(k) the cost of keeping k units. The steps along the upper
concave hull of the points (C, V) are taken in order of their slope dV / dC: the greedy answer to the multiple-choice
knapsack, which is the best there is whenever the budget falls between two steps (Sinha & Zoltners, "The multiple-choice
knapsack problem", 1979). Where all units of a site cost the same, this is one threshold on score per cost. The budget
is never exceeded, and what is left of it is smaller than any step that was not taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from niwaki.allocation.bounds import Bounds
from niwaki.config.structured import ALLOCATIONS

Allocator = Callable[[dict[str, Tensor], dict[str, Bounds], float], dict[str, Tensor]]


def global_threshold(scores: dict[str, Tensor], bounds: dict[str, Bounds], budget: float) -> dict[str, Tensor]:
    """Keep the units with most score per cost; returns sorted unit indices by site name.

    `scores[name]` is `[units]`, none negative; `budget` is in the unit of the costs and at least `least_cost`.
    """
    ranked = {name: _ranked(score, bounds[name].groups) for name, score in scores.items()}
    values = {name: score[ranked[name]].double() for name, score in scores.items()}
    kept = {name: bound.widths[0] for name, bound in bounds.items()}
    left = budget * (1 + 1e-12) - sum(bounds[name].cost(width) for name, width in kept.items())
    steps = [(slope, name, width) for name in scores for slope, width in _hull(values[name], bounds[name])]
    closed: set[str] = set()
    for _, name, width in sorted(steps, key=lambda step: -step[0]):
        price = bounds[name].cost(width) - bounds[name].cost(kept[name])
        if name in closed or price > left:
            closed.add(name)
            continue
        kept[name], left = width, left - price
    _spend_(kept, left, bounds, values)
    return {name: ranked[name][: kept[name]].sort().values for name in scores}


def _ranked(score: Tensor, groups: int) -> Tensor:
    """Units, the best first; where they lie in groups the best of every group, then the second of every group, ..."""
    best = torch.argsort(score.reshape(groups, -1), dim=1, descending=True, stable=True)
    return (best + torch.arange(groups)[:, None] * best.shape[1]).T.flatten()


def _hull(values: Tensor, bounds: Bounds) -> list[tuple[float, int]]:
    """Slope and width of each step along the upper concave hull of (cost, value), slopes falling."""
    value = [0.0, *values.cumsum(0).tolist()]
    cost = bounds.costs.tolist()
    hull: list[tuple[float, int]] = [(float("inf"), bounds.widths[0])]
    for width in bounds.widths[1:]:
        while True:
            base = hull[-1][1]
            gain, price = value[width] - value[base], cost[width] - cost[base]
            slope = gain / price if price > 0 else float("inf")
            if len(hull) == 1 or slope < hull[-1][0]:
                break
            hull.pop()
        hull.append((slope, width))
    return hull[1:]


def _spend_(kept: dict[str, int], left: float, bounds: dict[str, Bounds], values: dict[str, Tensor]) -> None:
    """Spend what is left: on whole steps below the hull, the best first, then on a few more units of one site.

    That one is the narrowest of those with the cheapest units: they use the budget up best, and an odd width slows a
    matrix product down by a share of itself.
    """
    while offer := _best_offer(kept, left, bounds, values, _next_width):
        name, width, price = offer
        kept[name], left = width, left - price
    price_of = {n: b.cost(w) - b.cost(kept[n]) for n, b in bounds.items() if (w := _next_unit(b, kept[n])) is not None}
    cheapest = [name for name, price in price_of.items() if price <= min(price_of.values()) * (1 + 1e-9)]
    narrowest = sorted(cheapest, key=lambda name: kept[name])[:1]
    while offer := _best_offer(kept, left, {name: bounds[name] for name in narrowest}, values, _next_unit):
        name, width, price = offer
        kept[name], left = width, left - price


def _best_offer(
    kept: dict[str, int],
    left: float,
    bounds: dict[str, Bounds],
    values: dict[str, Tensor],
    next_of: Callable[[Bounds, int], int | None],
) -> tuple[str, int, float] | None:
    """Name, width and price of the affordable step with most score per cost, or None."""
    best, offer = -1.0, None
    for name, bound in bounds.items():
        width = next_of(bound, kept[name])
        price = bound.cost(width) - bound.cost(kept[name]) if width is not None else float("inf")
        if width is None or price > left:
            continue
        slope = float(values[name][kept[name] : width].sum()) / max(price, 1e-300)
        if slope > best:
            best, offer = slope, (name, width, price)
    return offer


def _next_width(bound: Bounds, width: int) -> int | None:
    return next((wider for wider in bound.widths if wider > width), None)


def _next_unit(bound: Bounds, width: int) -> int | None:
    return width + 1 if bound.remainder and width < bound.units else None


def uniform(scores: dict[str, Tensor], bounds: dict[str, Bounds], budget: float) -> dict[str, Tensor]:
    """Keep the same fraction of every site: the threshold falls on each unit's rank within its site."""
    ranks = {}
    for name, score in scores.items():
        order = _ranked(score, bounds[name].groups).flip(0)
        rank = torch.empty(len(score), dtype=torch.double)
        rank[order] = (torch.arange(len(score), dtype=torch.double) + 0.5) / len(score)
        # Score per cost is the rank, whatever the unit costs.
        price = torch.empty(len(score), dtype=torch.double)
        price[order.flip(0)] = bounds[name].costs.diff()
        ranks[name] = rank * price
    return global_threshold(ranks, bounds, budget)


ALLOCATORS: dict[str, Allocator] = dict(zip(ALLOCATIONS, (global_threshold, uniform), strict=True))
