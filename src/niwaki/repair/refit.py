"""Structured repair: refit what the cut left so that it does the dense model's work on the pruned model's own inputs.

`least-squares` refits every linear of the blocks, bottom-up and bias included: the projections into the units to what
the dense ones give there, those out of them to the dense residual stream (see
`niwaki.repair.sequential_least_squares`). `bias` refits the biases of the latter alone, by the mean of what is missing
(FLAP, An et al., AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import BlockLinear, sites_of
from niwaki.observe import Batch, TokenWeights
from niwaki.processes import Parts, shared_out
from niwaki.repair.kept_targets import KeptTargets
from niwaki.repair.least_squares import Sums, fit, fit_bias, store_
from niwaki.repair.sequential_least_squares import AfterLayer, Fit, sequential_least_squares_
from niwaki.surgery import Kept


@torch.no_grad()
def refit_(
    model: nn.Module,
    dense: nn.Module,
    data: Sequence[Batch],
    kept: Kept,
    method: str,
    *,
    weights: TokenWeights | None = None,
    query_heads: bool = False,
    then: AfterLayer | None = None,
    targets: KeptTargets | None = None,
    progress: bool = False,
) -> None:
    """Refit `model`, of which the units `kept` of `dense` are left, to that, in place; `method` as in `--repair`.

    `weights` say how much each token matters (`niwaki.observe.tokens`); alike where they are not given. `query_heads`
    says what the units are (`niwaki.anatomy.sites_of`). `then` is called after each layer. `targets` keep
    what `dense` gives for the next model that is refitted to it.

    Raises:
        WorkError: a refitted weight that is not finite, or a solve that no damping saves; names the linear.
    """
    shared: Any = {"weights": weights, "then": then, "kept": targets, "progress": progress}
    if method == "bias":
        sequential_least_squares_(model, dense, data, _each(fit_bias), store_, only_writing=True, **shared)
        return
    rows = {
        f"layer.{site.layer}.{read.part}": read.rows_of(kept[site.name])
        for site in sites_of(dense, query_heads)
        for read in site.reads
    }
    sequential_least_squares_(model, dense, data, _each(fit), store_, rows=rows, **shared)


def _each(fit_one: Callable[[BlockLinear, Sums], Parts]) -> Fit:
    """Each of several processes fits some of the linears that see the same input."""
    return lambda sums: shared_out(sums, lambda one: fit_one(*one))
