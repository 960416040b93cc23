"""Group OBS: what the loss rises by when a unit goes and the rest of the output matrix makes up for it.

With H the second moment of the projection's input, tokens weighted as in `niwaki.observe.tokens`, W its weight
and G the second moment of the loss gradient at its output, the rise from removing the columns S, the remaining ones
refitted, is `1/2 tr(G W_S [(H^-1)_SS]^-1 W_S^T)` (Hassibi & Stork 1993; ZipLM, Kurtic et al. 2023; the weight by G is
the Kronecker-factored Fisher of Martens & Grosse 2015). Units are removed greedily, the cheapest first, and W and H^-1
are updated after each removal, so two units that stand in for each other are not both called useless. A unit's score is
the rise at its own removal, made monotone along the order. G makes scores of all layers comparable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.adapters import effective_weight
from niwaki.anatomy import Site, columns_of
from niwaki.numerics.solve import damped_inverse
from niwaki.observe import Statistics
from niwaki.observe.tokens import FLOOR

_ROUNDS = 96
"""A site is removed in about this many rounds: neurons several at a time, heads one by one."""


def reconstruction(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """The loss rise at each unit's removal in the greedy order, `[units]`.

    Raises:
        WorkError: the moments cannot be inverted however much they are damped.
    """
    del seed
    sums = statistics.linears[site.output_name]
    gradients = torch.as_tensor(sums.gradient_moments).double() / statistics.rows
    moments = torch.as_tensor(sums.moments).double() / (statistics.tokens * (1 + FLOOR))
    inverse = damped_inverse(moments, site.name)
    weight = effective_weight(site.output).double().T.contiguous()
    sensitivity = weight @ gradients
    batch = max(1, site.units // _ROUNDS)

    scores = torch.zeros(site.units, dtype=torch.double)
    left = torch.arange(site.units)
    floor = 0.0
    while len(left):
        rise = _rise(weight, sensitivity, inverse, left, site.width)
        order = rise.argsort()[:batch]
        for unit in order.tolist():
            floor = max(floor, float(rise[unit]))
            scores[left[unit]] = floor
        _remove_(weight, sensitivity, inverse, columns_of(left[order], site.width))
        keep = torch.ones(len(left), dtype=torch.bool)
        keep[order] = False
        left = left[keep]
    return scores


def _rise(weight: Tensor, sensitivity: Tensor, inverse: Tensor, left: Tensor, width: int) -> Tensor:
    """`1/2 tr(G W_u [(H^-1)_uu]^-1 W_u^T)` of each unit u that is `left`, `[units left]`.

    `weight` is `W^T` and `sensitivity` `W^T G`, `[n, d]`, `inverse` `H^-1` `[n, n]`.
    """
    if width == 1:
        return 0.5 * torch.linalg.vecdot(sensitivity, weight)[left] / inverse.diagonal()[left]
    units = len(weight) // width
    blocks = inverse.reshape(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)[left]
    w = weight.reshape(units, width, -1)[left]
    products = sensitivity.reshape(units, width, -1)[left] @ w.transpose(1, 2)  # W_u^T G W_u
    return 0.5 * torch.linalg.solve(blocks, products).diagonal(dim1=1, dim2=2).sum(1)


def _remove_(weight: Tensor, sensitivity: Tensor, inverse: Tensor, columns: Tensor) -> None:
    """Refit the weight to the loss of `columns`, in place: what belongs to them is 0 in all three afterwards.

    Nothing is copied together anew: of a wide site that would take longer than the refit.
    """
    pull = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])
    weight.addmm_(pull.T, weight[columns], alpha=-1)
    sensitivity.addmm_(pull.T, sensitivity[columns], alpha=-1)
    inverse.addmm_(inverse[:, columns], pull, alpha=-1)
