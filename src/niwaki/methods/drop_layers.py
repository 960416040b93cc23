"""Whole layers go: those that change what passes through them least (ShortGPT, Men et al., 2024).

The block influence of a layer is the mean of 1 - cos(input, output) over tokens. A layer that goes loses all its heads
and neurons: nothing is computed there any more, what enters it leaves it (with the constant of its output biases, which
repair refits). So layers keep their numbers, and any model with empty sites can be saved, loaded and generate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from niwaki.allocation.budget import Budget
from niwaki.anatomy import Site, sites_of
from niwaki.errors import RequestError
from niwaki.observe import Batch, Need, Statistics, observe
from niwaki.surgery import cut_


def check_drop(sites: list[Site], budget: Budget, count: int) -> None:
    """Refuse to drop more layers than the budget lets go, whichever they are, to within one head or neuron.

    Raises:
        RequestError: naming the most that can go; heads that cannot be removed.
    """
    if any(site.fixed for site in sites):
        raise RequestError(f"drop_layers must be 0 for a model whose heads cannot be removed, got {count}")
    costs = {site.layer: 0.0 for site in sites if site.units}
    for site in sites:
        if site.layer in costs:
            costs[site.layer] += float(budget.costs_of(site)[-1])
    unit = max(float(budget.costs[site.name].diff()[: site.units].max()) for site in sites if site.units)
    # What is dropped is not known yet: the dearest layers may be.
    gone, most = -unit, 0
    for cost in sorted(costs.values(), reverse=True)[:-1]:
        gone += cost
        if gone > (1 - budget.fraction + 1e-9) * budget.total:
            break
        most += 1
    if count > most:
        rule = f"drop_layers must be at most {most}, the layers that {budget.kind} {budget.fraction:g} lets go"
        raise RequestError(f"{rule}, got {count}")


def drop_layers_(
    model: nn.Module, data: Sequence[Batch], count: int, seed: int, *, progress: bool = False
) -> Statistics:
    """Empty the `count` layers of `model` of least block influence, in place; what was observed of it as it was.

    The sizes of its gradients by token are among that: one pass is enough for all that need no more.

    Raises:
        WorkError: a statistic that is not finite.
    """
    statistics = observe(model, data, Need(token_sizes=True), seed=seed, progress=progress)
    influence = {int(name.split(".")[1]): sums.influence for name, sums in statistics.linears.items()}
    gone = set(sorted(influence, key=lambda layer: influence[layer])[:count])
    plan = {site.name: torch.arange(0 if site.layer in gone else site.units) for site in sites_of(model)}
    cut_(model, plan)
    return statistics
