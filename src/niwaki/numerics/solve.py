"""Symmetric solves that are damped until they succeed, and say so when they cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.errors import WorkError

DAMPING = 1e-3


@dataclass(frozen=True, eq=False)
class Damped:
    """Lower Cholesky factor of `moments + ridge * I` `[n, n]`, and `damping`: ridge / mean of the diagonal."""

    factor: Tensor
    ridge: float
    damping: float


def damp(moments: Tensor, name: str, damping: float = DAMPING) -> Damped:
    """`moments + damping * mean(diagonal) * I`; damping grows tenfold until Cholesky succeeds.

    Raises:
        WorkError: no damping up to the size of the matrix itself is enough (it is not finite, or all zero).
    """
    scale = float(moments.diagonal().mean()) or 1.0
    while damping <= 1.0:
        raised = moments.clone()
        raised.diagonal().add_(damping * scale)
        factor, failed = torch.linalg.cholesky_ex(raised)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return Damped(factor, damping * scale, damping)
        damping *= 10
    raise WorkError(f"{name}: the second moments cannot be factorised even with damping {damping / 10:g}")


def damped_inverse(moments: Tensor, name: str, damping: float = DAMPING) -> Tensor:
    """Inverse of the damped moments, `[n, n]`; see `damp`."""
    return torch.cholesky_inverse(damp(moments, name, damping).factor)
