"""One threshold for all sites: units leave in order of score per cost until the budget is met.

The budget is never exceeded, and what is left of it is smaller than any unit that was removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """Limits of one site: the cost of one unit, the fewest units to keep, and the multiple to keep them in."""

    cost: float
    minimum: int
    multiple: int = 1


def least_units(units: int, bounds: Bounds) -> int:
    """The fewest units that may be kept: the minimum, rounded up to the multiple."""
    return min(units, -(-bounds.minimum // bounds.multiple) * bounds.multiple)


def least_cost(units: dict[str, int], bounds: dict[str, Bounds]) -> float:
    """Cost of the smallest model that the bounds allow."""
    return sum(bounds[name].cost * least_units(count, bounds[name]) for name, count in units.items())


def global_threshold(scores: dict[str, Tensor], bounds: dict[str, Bounds], budget: float) -> dict[str, Tensor]:
    """Keep the units with most score per cost; returns sorted unit indices by site name.

    `scores[name]` is `[units]`; `budget` is in the unit of `bounds[name].cost` and at least `least_cost`.
    """
    steps: list[tuple[float, str, int]] = []
    ranked = {name: torch.argsort(score, descending=True, stable=True) for name, score in scores.items()}
    kept: dict[str, int] = {}
    for name, score in scores.items():
        bound, position = bounds[name], least_units(len(score), bounds[name])
        kept[name] = position
        while position < len(score):
            size = min(bound.multiple, len(score) - position)
            value = float(score[ranked[name][position : position + size]].mean())
            steps.append((value / bound.cost, name, size))
            position += size
    left = budget * (1 + 1e-12) - sum(bounds[name].cost * count for name, count in kept.items())
    closed: set[str] = set()
    for _, name, size in sorted(steps, key=lambda step: -step[0]):
        price = size * bounds[name].cost
        if name in closed or price > left:
            closed.add(name)
            continue
        kept[name] += size
        left -= price
    return {name: ranked[name][: kept[name]].sort().values for name in scores}


def uniform(scores: dict[str, Tensor], bounds: dict[str, Bounds], budget: float) -> dict[str, Tensor]:
    """Keep the same fraction of every site: the threshold falls on each unit's rank within its site."""
    ranks = {}
    for name, score in scores.items():
        order = torch.argsort(score, stable=True)
        rank = torch.empty(len(score), dtype=torch.double)
        rank[order] = (torch.arange(len(score), dtype=torch.double) + 0.5) / len(score)
        ranks[name] = rank * bounds[name].cost
    return global_threshold(ranks, bounds, budget)


ALLOCATORS: dict[str, Callable[[dict[str, Tensor], dict[str, Bounds], float], dict[str, Tensor]]] = {
    "global": global_threshold,
    "uniform": uniform,
}
