"""One threshold for all sites: units stay in order of score per cost until the budget is used up.

Each site may have some shapes (so many units, see `niwaki.allocation.bounds`): let V be the sum of the best scores that
a shape keeps and C what it costs. The steps along the upper concave hull of a site's points (C, V) are taken in order
of their slope dV / dC: the greedy answer to the multiple-choice knapsack, which is the best there is whenever the
budget falls between two steps (Sinha & Zoltners, "The multiple-choice knapsack problem", 1979). Where all units of a
site cost the same, this is one threshold on score per cost. The budget is never exceeded, and what is left of it is
smaller than any step that was not taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.allocation.bounds import Bounds, Shape
from niwaki.config.structured import ALLOCATIONS

Allocator = Callable[[dict[str, Tensor], dict[str, Bounds], float], dict[str, Tensor]]


class _Ranked:
    """The units of a site by score, the best of each group first, and what they are worth together."""

    def __init__(self, score: Tensor, groups: int) -> None:
        best, order = score.double().reshape(groups, -1).sort(dim=1, descending=True, stable=True)
        self.units = order + torch.arange(groups)[:, None] * order.shape[1]
        self.sums = torch.cat([best.new_zeros(groups, 1), best.cumsum(1)], 1)

    def _groups(self, shape: Shape) -> Tensor:
        """The groups that are worth most in this shape."""
        worth = self.sums[:, shape.units // shape.groups]
        return worth.argsort(descending=True, stable=True)[: shape.groups]

    def value(self, shape: Shape) -> float:
        """The sum of the scores that a shape keeps."""
        return float(self.sums[self._groups(shape), shape.units // shape.groups].sum()) if shape.units else 0.0

    def kept(self, shape: Shape) -> Tensor:
        """The units that a shape keeps, sorted: of every group that stays its best."""
        if not shape.units:
            return torch.arange(0)
        return self.units[self._groups(shape), : shape.units // shape.groups].flatten().sort().values


@dataclass(frozen=True, eq=False)
class _Choice:
    """A shape that a site may have, and the sum of the scores that it keeps."""

    shape: Shape
    value: float


def global_threshold(scores: dict[str, Tensor], bounds: dict[str, Bounds], budget: float) -> dict[str, Tensor]:
    """Keep the units with most score per cost; returns sorted unit indices by site name.

    `scores[name]` is `[units]`, none negative; `budget` is in the unit of the costs and at least `least_cost`.
    """
    ranked = {name: _Ranked(score, bounds[name].groups) for name, score in scores.items()}
    choices = {name: _choices(ranked[name], bounds[name]) for name in scores}
    taken = dict.fromkeys(scores, 0)
    left = budget * (1 + 1e-12) - sum(offers[0].shape.cost for offers in choices.values())
    steps = [(slope, name, index) for name in scores for slope, index in _hull(choices[name])]
    closed: set[str] = set()
    for _, name, index in sorted(steps, key=lambda step: -step[0]):
        price = choices[name][index].shape.cost - choices[name][taken[name]].shape.cost
        if name in closed or price > left:
            closed.add(name)
            continue
        taken[name], left = index, left - price
    return {name: ranked[name].kept(shape) for name, shape in _spend(choices, taken, left, bounds).items()}


def _choices(ranked: _Ranked, bounds: Bounds) -> list[_Choice]:
    """What may be kept of a site, cost and value rising: what costs more than another and is worth less is left out."""
    found: list[_Choice] = []
    for shape in bounds.shapes:
        value = ranked.value(shape)
        if not found or value >= found[-1].value * (1 - 1e-12):
            found.append(_Choice(shape, value))
    return found


def _hull(choices: list[_Choice]) -> list[tuple[float, int]]:
    """Slope and index of each step along the upper concave hull of (cost, value), slopes falling."""
    hull: list[tuple[float, int]] = [(float("inf"), 0)]
    for index, choice in enumerate(choices[1:], start=1):
        while True:
            base = choices[hull[-1][1]]
            gain, price = choice.value - base.value, choice.shape.cost - base.shape.cost
            slope = gain / price if price > 0 else float("inf")
            if len(hull) == 1 or slope < hull[-1][0]:
                break
            hull.pop()
        hull.append((slope, index))
    return hull[1:]


def _spend(
    choices: dict[str, list[_Choice]], taken: dict[str, int], left: float, bounds: dict[str, Bounds]
) -> dict[str, Shape]:
    """The shapes once what is left is spent: on whole steps below the hull, the best first, then on a few more units.

    These are of one site, the narrowest of those with the cheapest units: they use the budget up best, and an odd width
    slows a matrix product down by a share of itself.
    """
    while offer := _best_offer(choices, taken, left):
        name, price = offer
        taken[name], left = taken[name] + 1, left - price
    shapes = {name: choices[name][index].shape for name, index in taken.items()}
    price_of = {
        name: bound.cost(shapes[name].units + 1) - bound.cost(shapes[name].units)
        for name, bound in bounds.items()
        if bound.remainder and shapes[name].units < bound.units
    }
    cheapest = [name for name, price in price_of.items() if price <= min(price_of.values()) * (1 + 1e-9)]
    for name in sorted(cheapest, key=lambda name: shapes[name].units)[:1]:
        bound, width = bounds[name], shapes[name].units
        while width < bound.units and (price := bound.cost(width + 1) - bound.cost(width)) <= left:
            width, left = width + 1, left - price
        shapes[name] = Shape(bound.cost(width), width, 1)
    return shapes


def _best_offer(choices: dict[str, list[_Choice]], taken: dict[str, int], left: float) -> tuple[str, float] | None:
    """Name and price of the affordable next step with most score per cost, or None."""
    best, offer = -1.0, None
    for name, index in taken.items():
        if index + 1 == len(choices[name]):
            continue
        here, there = choices[name][index : index + 2]
        price = there.shape.cost - here.shape.cost
        slope = (there.value - here.value) / max(price, 1e-300)
        if price <= left and slope > best:
            best, offer = slope, (name, price)
    return offer


def uniform(scores: dict[str, Tensor], bounds: dict[str, Bounds], budget: float) -> dict[str, Tensor]:
    """Keep the same fraction of every site: the threshold falls on each unit's rank within its site."""
    ranks = {}
    for name, score in scores.items():
        # The best of every group, then the second of every group, ...; from the end.
        order = _Ranked(score, bounds[name].groups).units.T.flatten().flip(0)
        rank = torch.empty(len(score), dtype=torch.double)
        rank[order] = (torch.arange(len(score), dtype=torch.double) + 0.5) / len(score)
        # Score per cost is the rank, whatever the unit costs.
        price = torch.empty(len(score), dtype=torch.double)
        price[order.flip(0)] = bounds[name].costs.diff()
        ranks[name] = rank * price
    return global_threshold(ranks, bounds, budget)


ALLOCATORS: dict[str, Allocator] = dict(zip(ALLOCATIONS, (global_threshold, uniform), strict=True))
