"""Symmetric solves that are damped until they succeed, and say so when they cannot."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.errors import WorkError

DAMPING = 1e-3


def damped_inverse(moments: Tensor, name: str, damping: float = DAMPING) -> Tensor:
    """Inverse of `moments + damping * mean(diag) * I`, `[n, n]`; damping grows tenfold until Cholesky succeeds.

    Raises:
        WorkError: no damping up to the size of the matrix itself is enough (it is not finite, or all zero).
    """
    factor = damped_factor(moments, name, damping)
    return torch.cholesky_inverse(factor)


def damped_factor(moments: Tensor, name: str, damping: float = DAMPING) -> Tensor:
    """Lower Cholesky factor of `moments + damping * mean(diag) * I`; see `damped_inverse`."""
    scale = float(moments.diagonal().mean()) or 1.0
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    while damping <= 1.0:
        factor, failed = torch.linalg.cholesky_ex(moments + damping * scale * eye)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return factor
        damping *= 10
    raise WorkError(f"{name}: the second moments cannot be factorised even with damping {damping / 10:g}")
