"""Scores -> mask, with exactly the number of zeros that was asked.

The lowest scores become zero. Of equal scores the first in row-major order goes first, so the choice is the same on
every run, and no tie makes a zero more or less. Half precision is compared in float32, which holds it exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.config.patterns import Block, NByM, Pattern
from niwaki.errors import RequestError, WorkError


def check_divides(shape: tuple[int, int], pattern: Pattern, name: str) -> None:
    """Refuse a pattern that does not divide a weight of `shape` `[out, in]`.

    Raises:
        RequestError: naming the linear and its dimension.
    """
    rows, columns = (1, pattern.m) if isinstance(pattern, NByM) else (1, 1)
    if isinstance(pattern, Block):
        rows, columns = pattern.rows, pattern.columns
    for side, size, part in (("outputs", shape[0], rows), ("inputs", shape[1], columns)):
        if size % part:
            raise RequestError(f"pattern {pattern} must divide the {side} of {name}, got {size} {side}")


def choose(
    scores: Tensor,
    zeros: int,
    pattern: Pattern,
    name: str,
    *,
    before: Tensor | None = None,
    by_row: bool = False,
) -> Tensor:
    """Mask `[out, in]`, True where the weight is kept; `zeros` of it False.

    What a mask from `before` `[out, in]` does not keep is zero already: it stays zero, and counts. With `by_row`
    weights compete within their output row, and every row has the same number of zeros (to one, and where it has no
    more already). An n:m pattern has its own number of zeros and `zeros` is not looked at; blocks are zeroed while
    their weights fit into `zeros`, so it may be missed by less than a block.

    Raises:
        RequestError: more zeros than weights, or a pattern that does not divide. WorkError: a score that is NaN.
    """
    values = scores.detach().float() if scores.dtype in (torch.bfloat16, torch.float16) else scores.detach()
    if bool(values.isnan().any()):
        raise WorkError(f"{name}: a weight score is NaN; check the weights and the calibration data")
    if not 0 <= zeros <= values.numel():
        raise RequestError(f"zeros of {name} must be 0 to {values.numel()}, got {zeros}")
    rows, columns = int(values.shape[0]), int(values.shape[1])
    check_divides((rows, columns), pattern, name)
    if isinstance(pattern, Block):
        return _choose_blocks(values, zeros, pattern, before)
    open_ = values if before is None else values.masked_fill(~before, -torch.inf)
    if isinstance(pattern, NByM):
        groups = open_.reshape(-1, pattern.m)
        kept = _lowest_false(groups, torch.full((len(groups),), pattern.m - pattern.n)).reshape(rows, columns)
    elif by_row:
        kept = _lowest_false(open_, _zeros_by_row(zeros, rows, before))
    else:
        kept = ~lowest(open_.flatten(), zeros).reshape(rows, columns)
    return kept if before is None else kept & before


def _choose_blocks(values: Tensor, zeros: int, pattern: Block, before: Tensor | None) -> Tensor:
    """The blocks that hurt least for each weight that they still have go, as long as these weights fit into `zeros`."""
    r, c = pattern.rows, pattern.columns
    alive = torch.ones_like(values, dtype=torch.bool) if before is None else before

    def by_block(of: Tensor) -> Tensor:
        return of.reshape(of.shape[0] // r, r, of.shape[1] // c, c).sum((1, 3))

    left = by_block(alive.long())
    sums = by_block(values.masked_fill(~alive, 0.0)) / left.clamp_min(1)
    order = sums.masked_fill(left == 0, -torch.inf).flatten().argsort(stable=True)
    spent = left.flatten()[order].cumsum(0)
    gone = torch.zeros_like(left, dtype=torch.bool).flatten()
    gone[order[spent <= zeros - (alive.numel() - int(alive.sum()))]] = True
    kept = ~gone.reshape(left.shape)
    return kept.repeat_interleave(r, 0).repeat_interleave(c, 1) & alive


def _zeros_by_row(zeros: int, rows: int, before: Tensor | None) -> Tensor:
    """How many of each row are zero, `[rows]`: as even as those that are zero already let them be, `zeros` in all."""
    least = torch.zeros(rows, dtype=torch.long) if before is None else (~before).sum(1).cpu()
    low, high = 0, zeros + 1  # the highest level at which no more than `zeros` are spent
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if int(least.clamp_min(middle).sum()) <= zeros else (low, middle)
    counts = least.clamp_min(low)
    left = max(zeros - int(counts.sum()), 0)
    below = (counts == low).nonzero()[:, 0]
    # Spread over the rows evenly, so that neighbours do not all have one more.
    counts[below[torch.arange(left) * len(below) // max(left, 1)]] += 1
    return counts


def lowest(values: Tensor, count: int) -> Tensor:
    """Mask `[n]`, True at the `count` lowest of `values` `[n]`; of equal ones the first go first. Nothing is sorted."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    exact = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    threshold = exact.kthvalue(count).values
    found = exact < threshold
    ties = (exact == threshold).nonzero()[: count - int(torch.count_nonzero(found)), 0]
    found[ties] = True
    return found


def _lowest_false(values: Tensor, counts: Tensor) -> Tensor:
    """In each row of `values` `[n, m]`, the `counts` `[n]` lowest are False."""
    order = values.argsort(dim=1, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(values.shape[1], device=values.device).expand_as(order))
    return rank >= counts.to(values.device)[:, None]
