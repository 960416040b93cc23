"""A budget of zeros -> the zeros of every linear, exactly. Each rule has the signature `rule(profiles, zeros, power)`.

Rules that give a shape are made exact by water-filling: every ratio is the shape times one factor, held in its
bounds, the factor such that the parameter-weighted sum is the budget; then whole weights, by largest remainder.

inverse-importance: with v = (importance / largest)^power the shape is 1 - v, the seed's; all v equal means uniform.
What it gives can be drawn towards uniform (`towards_uniform`): alone it empties what matters less.
global: one threshold over the weights' scores. lamp: the same over w^2 / sum of the w'^2 not smaller (Lee et al., ICLR
2021). erk: density ~ (out + in) / (out * in) (Evci et al., ICML 2020). owl: densities that differ by 2 lambda = 0.16
from the least to the most important, in proportion between (Yin et al., ICML 2024, as in their code). search: the
least total loss along the linears' measured curves of loss by sparsity, each made convex: the knapsack's bound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.config import SPARSITY_ALLOCATIONS
from niwaki.config.by_name import by_name
from niwaki.errors import RequestError
from niwaki.numerics.decimals import shown_least, shown_most

OWL_RANGE = 0.08


Curve = tuple[tuple[float, float], ...]
"""Pairs of sparsity and measured loss, from (0, 0) on."""


@dataclass(frozen=True)
class LinearProfile:
    """What a rule knows of one linear: its shape, bounds of its ratio, importance, weight scores, and loss curve.

    A bound holds to within one weight (or one block), so that any budget between the bounds can be met. One that is
    `fixed` may not be cut, and keeps the zeros that it has. `scores` is `[out, in]`, higher where zeroing hurts more;
    `weights` the effective weight.
    """

    shape: tuple[int, int]
    low: float = 0.0
    high: float = 1.0
    fixed: bool = False
    importance: float = 1.0
    scores: Tensor | None = None
    weights: Tensor | None = None
    curve: Curve = ()

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def fewest(self) -> int:
        """Zeros at the lower bound, to within one weight; `most` are those at the upper bound."""
        return int(np.floor(round(self.low * self.size, 6)))

    @property
    def most(self) -> int:
        return min(int(np.ceil(round(self.high * self.size, 6))), self.size)


Profiles = dict[str, LinearProfile]


def possible_zeros(profiles: Profiles) -> tuple[int, int]:
    """The fewest and the most zeros that the bounds allow."""
    return sum(profile.fewest for profile in profiles.values()), sum(profile.most for profile in profiles.values())


def possible_sparsities(profiles: Profiles) -> tuple[float, float]:
    """The same as parts of all weights."""
    fewest, most = possible_zeros(profiles)
    total = sum(profile.size for profile in profiles.values())
    return fewest / total, most / total


def check_budget(profiles: Profiles, zeros: int, spared: str = "") -> None:
    """Refuse a budget that the bounds cannot meet; `spared` says in words what they leave alone.

    Raises:
        RequestError: with the range of sparsity that they can.
    """
    total = sum(profile.size for profile in profiles.values())
    fewest, most = possible_zeros(profiles)
    if not fewest <= zeros <= most:
        least, highest = possible_sparsities(profiles)
        possible = f"{shown_least(least):.4g} to {shown_most(highest):.4g}"
        rule = f"sparsity must be {possible} with min_sparsity and max_sparsity as asked"
        raise RequestError(f"{rule} and the zeros that are there already{spared}, got {zeros / total:.4g}")


def water_fill(shape: np.ndarray, sizes: np.ndarray, low: np.ndarray, high: np.ndarray, budget: Any) -> np.ndarray:
    """Ratios `clip(c * shape, low, high)` with `sum(ratio * size) = budget`, c found exactly from the kinks.

    Where every linear with a positive shape is full and budget is left, the rest is filled level by level alike.
    """

    def ratios(factor: float) -> np.ndarray:
        return np.clip(factor * shape, low, high)

    positive = shape > 0
    full = np.where(positive, high, low)
    if budget >= full @ sizes - 1e-9 and not positive.all():
        rest = water_fill(np.ones(int((~positive).sum())), sizes[~positive], low[~positive], high[~positive],
                          budget - full[positive] @ sizes[positive])  # fmt: skip
        full[~positive] = rest
        return full
    kinks = np.unique(np.concatenate([low[positive] / shape[positive], high[positive] / shape[positive], [0.0]]))
    spent = np.array([ratios(kink) @ sizes for kink in kinks])
    index = int(np.clip(np.searchsorted(spent, budget), 1, len(kinks) - 1)) if len(kinks) > 1 else 0
    if index == 0 or spent[index] == spent[index - 1]:
        return ratios(kinks[index])
    # Between two kinks the sum is linear in the factor.
    part = (budget - spent[index - 1]) / (spent[index] - spent[index - 1])
    return ratios(kinks[index - 1] + part * (kinks[index] - kinks[index - 1]))


def whole(ratios: np.ndarray, profiles: Profiles, zeros: int) -> dict[str, int]:
    """Whole numbers of zeros near `ratio * size`, in their bounds, with exactly `zeros` in all."""
    names = list(profiles)
    wanted = {name: float(ratio) * profiles[name].size for name, ratio in zip(names, ratios, strict=True)}
    counts = {name: min(max(int(np.floor(wanted[name])), profiles[name].fewest), profiles[name].most) for name in names}
    left = zeros - sum(counts.values())
    step = 1 if left > 0 else -1
    while left:
        order = sorted(names, key=lambda name: step * (counts[name] - wanted[name]))
        for name in order:
            limit = profiles[name].most if step > 0 else profiles[name].fewest
            if left and counts[name] != limit:
                counts[name] += step
                left -= step
    return counts


def whole_blocks(zeros: dict[str, int], unit: int, profiles: Profiles) -> dict[str, int]:
    """Multiples of a block of `unit` weights near `zeros`, in their bounds, in all as many to less than one block.

    Those of a linear that may not be cut are what they are.
    """
    free = {name: profile for name, profile in profiles.items() if not profile.fixed}
    blocks = {name: LinearProfile((p.size // unit, 1), p.low, p.high) for name, p in free.items()}
    ratios = np.array([zeros[name] / profile.size for name, profile in free.items()])
    counts = whole(ratios, blocks, sum(zeros[name] for name in free) // unit)
    return zeros | {name: unit * count for name, count in counts.items()}


def _column(profiles: Profiles, key: str) -> np.ndarray:
    """One number of every linear, in order."""
    return np.array([getattr(profile, key) for profile in profiles.values()], dtype=float)


def _filled(shape: np.ndarray, profiles: Profiles, zeros: int) -> dict[str, int]:
    sizes, low, high = (_column(profiles, key) for key in ("size", "low", "high"))
    return whole(water_fill(shape, sizes, low, high, float(zeros)), profiles, zeros)


def uniform(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """The same ratio everywhere."""
    del power
    return _filled(np.ones(len(profiles)), profiles, zeros)


def inverse_shape(importances: np.ndarray, power: float) -> np.ndarray:
    """`1 - (importance / largest)^power`; ones where all are equal."""
    largest = importances.max()
    if largest <= 0 or bool((importances == importances[0]).all()):
        return np.ones(len(importances))
    return 1 - (importances / largest) ** power


def inverse_importance(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """The seed's formula, exact: the less important, the more zeros."""
    importances = _column(profiles, "importance")
    return _filled(inverse_shape(importances, power), profiles, zeros)


def towards_uniform(zeros: dict[str, int], profiles: Profiles, strength: float) -> dict[str, int]:
    """`strength` of the way from the uniform ratios to those of `zeros`, with as many zeros in all, in the bounds."""
    sizes = _column(profiles, "size")
    even, given = (
        np.array([counts[name] for name in profiles]) / sizes
        for counts in (uniform(profiles, sum(zeros.values()), 1.0), zeros)
    )
    return whole(even + strength * (given - even), profiles, sum(zeros.values()))


def erk(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """Densities in proportion to (out + in) / (out * in)."""
    del power
    sizes = _column(profiles, "size")
    raw = np.array([sum(profile.shape) / profile.size for profile in profiles.values()])
    low, high = _column(profiles, "low"), _column(profiles, "high")
    density = water_fill(raw, sizes, 1 - high, 1 - low, sizes.sum() - zeros)
    return whole(1 - density, profiles, zeros)


def owl(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """Densities within 2 * 0.08 of each other, by importance (the share of outliers in the block)."""
    del power
    importances, sizes = _column(profiles, "importance"), _column(profiles, "size")
    spread = float(np.ptp(importances))
    away = -2 * OWL_RANGE * (importances - importances.min()) / spread if spread else np.zeros(len(importances))
    low, high = _column(profiles, "low"), _column(profiles, "high")
    below, above = -2.0, 2.0
    for _ in range(100):
        middle = (below + above) / 2
        spent = np.clip(middle + away, low, high) @ sizes
        below, above = (middle, above) if spent < zeros else (below, middle)
    return whole(np.clip(above + away, low, high), profiles, zeros)


def global_(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """One threshold: the weights with the lowest scores of all linears go."""
    del power
    scores = {name: torch.as_tensor(profile.scores).double().flatten() for name, profile in profiles.items()}
    return _lowest(scores, profiles, zeros)


def lamp(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """One threshold over the squared weight relative to those of its linear that are not smaller."""
    del power
    scores = {}
    for name, profile in profiles.items():
        squares = torch.as_tensor(profile.weights).double().square().flatten().sort().values
        scores[name] = squares / squares.flip(0).cumsum(0).flip(0).clamp_min(1e-300)
    return _lowest(scores, profiles, zeros)


def _lowest(scores: dict[str, Tensor], profiles: Profiles, zeros: int) -> dict[str, int]:
    """How many of each linear are among the lowest; those that the bounds decide do not compete."""
    names, counts, open_scores, owners = list(profiles), {}, [], []
    for number, name in enumerate(names):
        profile = profiles[name]
        counts[name] = profile.fewest
        found = scores[name].sort(stable=True).values[profile.fewest : profile.most]
        open_scores.append(found)
        owners.append(torch.full((len(found),), number))
    left = zeros - sum(counts.values())
    chosen = torch.cat(owners)[torch.cat(open_scores).argsort(stable=True)[:left]]
    for number, extra in enumerate(torch.bincount(chosen, minlength=len(names)).tolist()):
        counts[names[number]] += extra
    return counts


def search(profiles: Profiles, zeros: int, power: float) -> dict[str, int]:
    """The least sum of the measured losses: linears are filled in order of loss per zero."""
    del power
    grid = np.linspace(0, 1, 1001)
    sizes, low = (np.array([getattr(profile, name) for profile in profiles.values()]) for name in ("size", "low"))
    slopes, inside = [], []
    for profile in profiles.values():
        at, loss = (np.array(column) for column in zip(*profile.curve, strict=True))
        # The root of a loss that is quadratic in the error is close to linear between measured points.
        fine = np.interp(grid, at, np.sqrt(np.maximum(loss, 0))) ** 2
        slopes.append(np.maximum.accumulate(np.diff(fine)) / profile.size)
        inside.append(np.clip(np.minimum(grid[1:], profile.high) - np.maximum(grid[:-1], profile.low), 0, None))
    order = np.argsort(slopes, axis=None, kind="stable")
    room = (np.array(inside) * sizes[:, None]).flatten()
    before = np.concatenate([[0.0], room[order].cumsum()[:-1]])
    taken = np.empty_like(room)
    taken[order] = np.clip(zeros - low @ sizes - before, 0, room[order])
    return whole(low + taken.reshape(len(sizes), -1).sum(1) / sizes, profiles, zeros)


SPARSITY_ALLOCATORS: dict[str, Callable[[Profiles, int, float], dict[str, int]]] = by_name(
    SPARSITY_ALLOCATIONS, sys.modules[__name__]
)
