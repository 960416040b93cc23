"""Optimal Brain Surgeon along the columns of a linear: weights go, and those not yet reached make up for them.

For a linear with input second moment H, U the upper Cholesky factor of H^-1: going through the columns j, a weight
that goes leaves the error `w_j / U_jj`, and the later weights of its row lose `w_j / U_jj * U_j,later` (SparseGPT,
Frantar & Alistarh, ICML 2023; columns in blocks of 128). What goes is chosen block by block as the lowest
`w^2 / U_jj^2`, on what earlier columns left of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.masks import Block, NByM, Pattern, choose

BLOCK = 128
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
    weight = weight.clone()
    n, kept = weight.shape[1], torch.ones_like(weight, dtype=torch.bool)
    size = _block_size(pattern)
    wanted = _zeros_up_to(zeros, weight, before)
    done = 0
    for start in range(0, n, size):
        stop = min(start + size, n)
        part, corner = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        scores = part.square() / corner.diagonal().square()
        more = min(max(wanted[stop - 1] - done, 0), part.numel())
        keep = choose(scores, more, pattern, name, before=None if before is None else before[:, start:stop])
        done += keep.numel() - int(torch.count_nonzero(keep))
        # Column by column: as rows of the transpose, which lie in one piece.
        columns, open_, errors = part.T.contiguous(), keep.T.contiguous(), torch.empty(part.shape[::-1]).to(part)
        for column in range(stop - start):
            errors[column] = (columns[column] / corner[column, column]).masked_fill_(open_[column], 0.0)
            columns[column + 1 :].addr_(corner[column, column + 1 :], errors[column], alpha=-1)
        weight[:, start:stop] = torch.where(keep, columns.T, 0.0)
        kept[:, start:stop] = keep
        weight[:, stop:] -= errors.T @ upper[start:stop, stop:]
    return weight, kept


def _zeros_up_to(zeros: int, weight: Tensor, before: Tensor | None) -> list[int]:
    """How many weights are zero up to each column: those that were, and the same part of the others everywhere."""
    rows, n = weight.shape
    gone = torch.zeros(n, dtype=torch.long) if before is None else (~before).sum(0).cpu()
    still = (rows - gone).cumsum(0)
    more = max(zeros - int(gone.sum()), 0)
    return [int(g) + round(more * int(s) / max(int(still[-1]), 1)) for g, s in zip(gone.cumsum(0), still, strict=True)]


def _block_size(pattern: Pattern) -> int:
    unit = pattern.m if isinstance(pattern, NByM) else pattern.columns if isinstance(pattern, Block) else 1
    return max(BLOCK // unit, 1) * unit


def obs_factor(factor: Tensor) -> Tensor:
    """U, upper triangular with `U^T U = H^-1`, from the lower Cholesky factor of H."""
    return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
