"""The alternating direction method of multipliers (ADMM) over all weights of a linear: which of them are to stay.

Wanted is the least of `1/2 tr((W - T) H (W - T)^T)`, T the weight without zeros, over all W with a number of zeros. A
second W, called D, has the zeros. In turns W is the least of that loss and of `rho/2 |W - D + V / rho|^2`, D is what a
mask leaves of `W + V / rho`, and V grows by `rho (W - D)`: it becomes rho times what the mask took. The penalty rho
rises, until the two agree (ALPS, Meng et al., NeurIPS 2024). Inputs are scaled for H to have a diagonal of ones, so
that a weight is as large as what it gives, and one eigendecomposition of H serves all rows and every rho. But for the
mask no row looks at another: processes share them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from niwaki.masks import Pattern, choose
from niwaki.processes import by_rows

ITERATIONS = 20
PENALTY, RISE = 0.1, 1.15
"""The first rho, and its factor from one iteration to the next: in all about 14, at which few weights change sides."""


def admm_mask(
    target: Tensor,
    moments: Tensor,
    start: Tensor,
    zeros: int,
    pattern: Pattern,
    name: str,
    *,
    before: Tensor | None = None,
) -> Tensor:
    """The mask `[out, in]` that ADMM ends at, with `zeros` zeros in `pattern`; `before` as in `niwaki.masks.choose`.

    `target` `[out, in]` is T, `moments` `[in, in]` is H (positive definite), `start` `[out, in]` the first D: a pruned
    weight, such as that of the OBS pass.
    """
    size = moments.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(moments / size / size[:, None])
    wanted = by_rows(target, lambda rows: (target[rows] * size) @ vectors * values)
    sparse, given = start * size, torch.zeros_like(target)
    mask = sparse != 0
    rho = PENALTY
    for _ in range(ITERATIONS):
        dense = by_rows(target, functools.partial(_dense, wanted, rho * sparse - given, values, vectors, rho))
        meant = dense + given / rho
        mask = choose(meant.square(), zeros, pattern, name, before=before)
        sparse = meant * mask
        given = rho * (meant - sparse)
        rho *= RISE
    return mask


def _dense(wanted: Tensor, sparse: Tensor, values: Tensor, vectors: Tensor, rho: float, rows: slice) -> Tensor:
    """The first W in some rows, for `wanted` T H in the basis of the `vectors` of H, and rho D - V."""
    return (wanted[rows] + sparse[rows] @ vectors) / (values + rho) @ vectors.T
