"""What a linear loses at rising sparsity when it alone is pruned by the OBS pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from niwaki.adapters import effective_weight
from niwaki.allocation.sparsity import Curve
from niwaki.anatomy import BlockLinear
from niwaki.numerics.solve import damp
from niwaki.observe import Statistics
from niwaki.scoring.rows import row_scale
from niwaki.sparsify.obs import DAMPING, obs_factor, obs_prune_each

OFFSETS = (-2.2, -1.35, -0.8, 0.0, 0.8, 1.6)
"""Of the log odds of a zero, from those that are asked: where `search` measures what a linear loses."""


def sparsities_around(sparsity: float) -> tuple[float, ...]:
    """Where a curve is measured for a model that is to be so sparse: 0.10 to 0.83 for 0.5, 0.50 to 0.98 for 0.9."""
    wanted = min(max(sparsity, 0.02), 0.999)
    odds = [wanted / (1 - wanted) * math.exp(offset) for offset in OFFSETS]
    return tuple(odd / (1 + odd) for odd in odds)


def loss_curve(linear: BlockLinear, statistics: Statistics, at: Sequence[float], *, by_row: bool = False) -> Curve:
    """(sparsity, loss) pairs of one linear pruned alone: `1/2 sum_i G_ii (D H D^T)_ii`, D what the OBS pass changes.

    Measured at the sparsities `at`, known at 0 and 1. With `by_row` its rows compete for the weights that stay, see
    `niwaki.scoring.rows`. H is the second moment of the input and G that of the loss gradient at the output, of which
    the diagonal is taken: the Kronecker-factored Fisher (Martens & Grosse, 2015), which makes the curves of all linears
    comparable.
    """
    sums = statistics.linears[linear.name]
    moments = torch.as_tensor(sums.moments).double() / statistics.tokens
    upper = obs_factor(damp(moments, linear.name, DAMPING).factor).float()
    gradients = (torch.as_tensor(sums.gradient_squares) / statistics.rows).float()
    weight, moments = effective_weight(linear.module).float(), moments.float()
    scale = row_scale(sums)[:, None] if by_row else torch.ones(1, 1).to(weight)

    def loss(change: Tensor) -> float:
        return 0.5 * float(gradients @ ((change @ moments) * change).sum(1))

    pruned = obs_prune_each(weight * scale, upper, [round(sparsity * linear.size) for sparsity in at], linear.name)
    points = ((sparsity, loss(weight - one / scale)) for sparsity, one in zip(at, pruned, strict=True))
    return ((0.0, 0.0), *points, (1.0, loss(weight)))
