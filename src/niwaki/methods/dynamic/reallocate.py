"""Which units (weights, blocks of weights) an update drops and which it grows; what is active in all is exact.

With a units active, k to be active afterwards, and r that return: the a - k + r lowest of the active are dropped, and
the r highest of those that were inactive grow. `within` does this in every linear for its own k, `across` for all
linears at once, so that the budget moves to where the scores are higher. Nothing that was just dropped grows. Where
both scores are of one kind, no more return than are among the k highest of all: none that matters less than what it
replaces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.masks import Block, NByM, Pattern, lowest

Masks = dict[str, Tensor]
Scores = dict[str, Tensor]


def size(mask: Tensor) -> int:
    """The number of True."""
    return int(torch.count_nonzero(mask))


def unit_size(pattern: Pattern) -> int:
    """Weights in a unit."""
    return pattern.size if isinstance(pattern, Block) else 1


def to_units(scores: Tensor, pattern: Pattern) -> Tensor:
    """Scores `[out, in]` -> scores of units: sums over blocks, the scores themselves otherwise."""
    if not isinstance(pattern, Block):
        return scores
    rows, columns = scores.shape
    r, c = pattern.rows, pattern.columns
    return scores.reshape(rows // r, r, columns // c, c).sum((1, 3))


def from_units(mask: Tensor, pattern: Pattern) -> Tensor:
    """Mask of units -> mask of weights `[out, in]`."""
    if not isinstance(pattern, Block):
        return mask
    return mask.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)


def swap(active: Tensor, drop: Tensor, grow: Tensor, dropped: int, grown: int) -> Tensor:
    """The mask after the `dropped` lowest active units went and the `grown` highest inactive ones came."""
    new = active.clone()
    if dropped:
        places = active.flatten().nonzero()[:, 0]
        new.view(-1)[places[lowest(drop.flatten()[places], dropped)]] = False
    if grown:
        places = (~active).flatten().nonzero()[:, 0]
        new.view(-1)[places[lowest(-grow.flatten()[places], grown)]] = True
    return new


def highest(active: Masks, drop: Scores, grow: Scores, kept: int) -> Masks:
    """The `kept` highest units of all, by `drop` for the active and by `grow` for the inactive."""
    scores = [-torch.where(mask, drop[name], grow[name]).flatten() for name, mask in active.items()]
    chosen = lowest(torch.cat(scores), kept).split([mask.numel() for mask in active.values()])
    return {name: part.reshape(active[name].shape) for name, part in zip(active, chosen, strict=True)}


def new_in(masks: Masks, active: Masks) -> int:
    """Units of `masks` that are not active."""
    return sum(size(mask & ~active[name]) for name, mask in masks.items())


def within(active: Masks, drop: Scores, grow: Scores, kept: dict[str, int], share: float, alike: bool = False) -> Masks:
    """Every linear for itself: `kept[name]` units active afterwards, at most `share` of them new.

    `alike` says that both scores are of one kind.
    """
    new = {}
    for name, mask in active.items():
        now, after = size(mask), kept[name]
        returning = min(round(share * after), mask.numel() - now)
        if alike and returning:
            returning = min(returning, new_in(highest({name: mask}, drop, grow, after), active))
        returning = max(returning, after - now, 0)
        new[name] = swap(mask, drop[name], grow[name], now - after + returning, returning)
    return new


def across(
    active: Masks,
    drop: Scores,
    grow: Scores,
    kept: int,
    share: float,
    least: dict[str, int],
    alike: bool = False,
) -> Masks:
    """All linears at once: `kept` units active afterwards, at most `share` of them new; each keeps `least[name]`.

    `alike` says that both scores are of one kind.
    """
    now = {name: size(mask) for name, mask in active.items()}
    inactive = {name: mask.numel() - now[name] for name, mask in active.items()}
    returning = max(min(round(share * kept), sum(inactive.values()), kept - sum(least.values())), 0)
    if alike and returning:
        best = highest(active, drop, grow, kept)
        worth = new_in(best, active)
        if worth <= returning and all(size(mask) >= least[name] for name, mask in best.items()):
            return best
        returning = min(returning, worth)
    dropped = lowest_of(
        {name: drop[name][mask] for name, mask in active.items()},
        sum(now.values()) - kept + returning,
        {name: max(now[name] - least[name], 0) for name in active},
    )
    new = {name: mask.masked_scatter(mask, ~dropped[name]) for name, mask in active.items()}
    if returning:
        grown = lowest_of({name: -grow[name][~mask] for name, mask in active.items()}, returning, inactive)
        new = {name: mask.masked_scatter(~active[name], grown[name]) for name, mask in new.items()}
    return new


def lowest_of(scores: Scores, count: int, most: dict[str, int]) -> Masks:
    """Which are the `count` lowest of all `scores` (one flat tensor a linear), of each linear `most` at most.

    A linear that would give more gives its `most` lowest, and the others share what is left by the same rule.
    """
    found: Masks = {}
    left, open_names = count, list(scores)
    while open_names:
        chosen = lowest(torch.cat([scores[name] for name in open_names]), left)
        parts = dict(zip(open_names, chosen.split([len(scores[name]) for name in open_names]), strict=True))
        over = [name for name, part in parts.items() if size(part) > most[name]]
        if not over:
            return found | parts
        found |= {name: lowest(scores[name], most[name]) for name in over}
        left -= sum(most[name] for name in over)
        open_names = [name for name in open_names if name not in over]
    return found


def in_groups(active: Tensor, drop: Tensor, grow: Tensor, pattern: NByM, share: float, alike: bool = False) -> Tensor:
    """For n:m, at most one swap a group: its weakest active for its best inactive, in the groups with the weakest.

    `alike` says that both scores are of one kind.
    """
    mask = active.reshape(-1, pattern.m)
    weakest = drop.reshape(mask.shape).masked_fill(~mask, torch.inf).min(1)
    best = grow.reshape(mask.shape).masked_fill(mask, -torch.inf).max(1)
    pays = best.values > weakest.values if alike else torch.ones_like(weakest.values, dtype=torch.bool)
    swaps = min(round(share * size(mask)), size(pays))
    groups = lowest(weakest.values.masked_fill(~pays, torch.inf), swaps).nonzero()[:, 0]
    new = mask.clone()
    new[groups, weakest.indices[groups]] = False
    new[groups, best.indices[groups]] = True
    return new.reshape(active.shape)
