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


def choose(scores: Tensor, zeros: int, pattern: Pattern, name: str, *, by_row: bool = False) -> Tensor:
    """Mask `[out, in]`, True where the weight is kept; `zeros` of it False.

    With `by_row` weights compete within their output row, and every row has the same number of zeros (to one). An n:m
    pattern has its own number of zeros and `zeros` is not looked at; blocks are zeroed while their weights fit into
    `zeros`, so a count that is no multiple of the block is rounded down.

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
    if isinstance(pattern, NByM):
        groups = values.reshape(-1, pattern.m)
        return _lowest_false(groups, torch.full((len(groups),), pattern.m - pattern.n)).reshape(rows, columns)
    if isinstance(pattern, Block):
        r, c = pattern.rows, pattern.columns
        blocks = values.reshape(rows // r, r, columns // c, c).sum((1, 3))
        kept = ~lowest(blocks.flatten(), zeros // (r * c)).reshape(blocks.shape)
        return kept.repeat_interleave(r, 0).repeat_interleave(c, 1)
    if by_row:
        counts = (torch.arange(1, rows + 1) * zeros).div(rows, rounding_mode="floor")
        return _lowest_false(values, counts.diff(prepend=torch.zeros(1, dtype=counts.dtype)))
    return ~lowest(values.flatten(), zeros).reshape(rows, columns)


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
