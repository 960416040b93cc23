"""What a linear loses at rising sparsity when it alone is pruned by the OBS pass."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.adapters import effective_weight
from niwaki.allocation.sparsity import Curve
from niwaki.anatomy import BlockLinear
from niwaki.config.patterns import Unstructured
from niwaki.numerics.solve import damp
from niwaki.observe import Statistics
from niwaki.scoring.rows import row_scale
from niwaki.sparsify.obs import DAMPING, obs_factor, obs_prune

CURVE = (0.5, 0.7, 0.8, 0.9, 0.96)
"""Sparsities at which `search` measures what a linear loses."""


def loss_curve(linear: BlockLinear, statistics: Statistics, *, by_row: bool = False) -> Curve:
    """(sparsity, loss) pairs of one linear pruned alone: `1/2 sum_i G_ii (D H D^T)_ii`, D what the OBS pass changes.

    With `by_row` its rows compete for the weights that stay, see `niwaki.scoring.rows`. H is the second moment of the
    input and G that of the loss gradient at the output, of which the diagonal is taken: the Kronecker-factored Fisher
    (Martens & Grosse, 2015), which makes the curves of all linears comparable.
    """
    sums = statistics.linears[linear.name]
    moments = torch.as_tensor(sums.moments).double() / statistics.tokens
    upper = obs_factor(damp(moments, linear.name, DAMPING).factor).float()
    gradients = torch.as_tensor(sums.gradient_squares) / statistics.rows
    weight, moments = effective_weight(linear.module).float(), moments.float()
    scale = row_scale(sums)[:, None] if by_row else torch.ones(1, 1).to(weight)

    def loss(change: Tensor) -> float:
        return 0.5 * float(gradients @ ((change @ moments) * change).sum(1))

    points = [(0.0, 0.0)]
    for sparsity in CURVE:
        pruned, _ = obs_prune(weight * scale, upper, round(sparsity * linear.size), Unstructured(), linear.name)
        points.append((sparsity, loss(weight - pruned / scale)))
    return (*points, (1.0, loss(weight)))
