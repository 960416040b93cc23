"""Optimal Brain Surgeon along the columns of a linear: weights go, and those not yet reached make up for them.

For a linear with input second moment H, U the upper Cholesky factor of H^-1: going through the columns j, a weight
that goes leaves the error `w_j / U_jj`, and the later weights of its row lose `w_j / U_jj * U_j,later` (SparseGPT,
Frantar & Alistarh, ICML 2023; columns in blocks of 128). What goes is chosen block by block as the lowest
`w^2 / U_jj^2`, on what earlier columns left of the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from niwaki.masks import Block, NByM, Pattern, Unstructured, choose

BLOCK = 128
TOGETHER = 2**23
"""Weights of the copies that are pruned in one sweep."""
DAMPING = 1e-2
"""Of the second moments, as a share of the mean of their diagonal."""


def obs_prune(
    weight: Tensor,
    upper: Tensor,
    zeros: int,
    pattern: Pattern,
    name: str,
    *,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The pruned and refitted weight and its mask, both `[out, in]`.

    `upper` `[in, in]` is U. Exactly `zeros` weights go (to less than a block of weights), the same part of every block
    of columns, in `pattern`; weights that `before` `[out, in]` does not keep are among them.
    """
    wanted, done = _zeros_up_to(zeros, weight, before), 0

    def choose_part(start: int, stop: int, scores: Tensor) -> Tensor:
        nonlocal done
        more = min(max(wanted[stop - 1] - done, 0), scores.numel())
        keep = choose(scores, more, pattern, name, before=None if before is None else before[:, start:stop])
        done += keep.numel() - int(torch.count_nonzero(keep))
        return keep

    return _sweep(weight, upper, _block_size(pattern), choose_part)


def obs_prune_each(weight: Tensor, upper: Tensor, zeros: Sequence[int], name: str) -> Iterator[Tensor]:
    """The weight `[out, in]` that `obs_prune` gives for each of several numbers of `zeros`, unstructured.

    Copies of a small weight are pruned in one sweep, as rows of one matrix: no row looks at another but for the mask.
    """
    together = max(TOGETHER // max(weight.numel(), 1), 1)
    for first in range(0, len(zeros), together):
        wanted = [_zeros_up_to(count, weight, None) for count in zeros[first : first + together]]
        copies = weight.repeat(len(wanted), 1)
        pruned, _ = _sweep(copies, upper, BLOCK, functools.partial(_choose_each, wanted, name))
        yield from pruned.chunk(len(wanted))


def _choose_each(wanted: Sequence[Sequence[int]], name: str, start: int, stop: int, scores: Tensor) -> Tensor:
    """What stays of a part of the columns of each copy; `wanted` are the zeros of each up to each column."""
    parts = zip(scores.chunk(len(wanted)), wanted, strict=True)
    counted = [(part, up_to[stop - 1] - (up_to[start - 1] if start else 0)) for part, up_to in parts]
    return torch.cat([choose(part, count, Unstructured(), name) for part, count in counted])


def _sweep(
    weight: Tensor, upper: Tensor, size: int, choose_part: Callable[[int, int, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The pruned weight and its mask; `choose_part(start, stop, scores)` says what stays of a part of the columns."""
    weight = weight.clone()
    n, kept = weight.shape[1], torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, n, size):
        stop = min(start + size, n)
        part, corner = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        keep = choose_part(start, stop, part.square() / corner.diagonal().square())
        # Column by column: as rows of the transpose, which lie in one piece.
        columns, errors = part.T.contiguous(), torch.empty(part.shape[::-1]).to(part)
        for column, stays in enumerate(keep.T.contiguous().unbind()):
            error = torch.div(columns[column], corner[column, column], out=errors[column]).masked_fill_(stays, 0.0)
            columns[column + 1 :].addr_(corner[column, column + 1 :], error, alpha=-1)
        weight[:, start:stop] = torch.where(keep, columns.T, 0.0)
        kept[:, start:stop] = keep
        weight[:, stop:] -= errors.T @ upper[start:stop, stop:]
    return weight, kept


def _zeros_up_to(zeros: int, weight: Tensor, before: Tensor | None) -> list[int]:
    """How many weights are zero up to each column: those that were, and the same part of the others everywhere."""
    rows, n = weight.shape
    gone = torch.zeros(n, dtype=torch.long) if before is None else (~before).sum(0).cpu()
    still, gone = (rows - gone).cumsum(0).tolist(), gone.cumsum(0).tolist()
    more = max(zeros - gone[-1], 0)
    return [there + round(more * open_ / max(still[-1], 1)) for there, open_ in zip(gone, still, strict=True)]


def _block_size(pattern: Pattern) -> int:
    unit = pattern.m if isinstance(pattern, NByM) else pattern.columns if isinstance(pattern, Block) else 1
    return max(BLOCK // unit, 1) * unit


def obs_factor(factor: Tensor) -> Tensor:
    """U, upper triangular with `U^T U = H^-1`, from the lower Cholesky factor of H."""
    return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
