"""FLAP: An et al., "Fluctuation-based adaptive structured pruning for large language models" (AAAI 2024).

From the paper. The score of a column of an output projection is the variance of its input over the calibration
tokens times the squared norm of its weights (WIFV); scores are standardised within each site, a head's is the mean of
its columns', and all heads and neurons compete (AL-AM), each counted by what it costs. What is removed is replaced by
its mean, in the bias of the projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import bias_of
from niwaki.anatomy import Site, sites_of, weight_of
from niwaki.observe.stream import Stream
from units import ROUNDING, Batch, by_unit, flops_of_units, keep_, total_flops


def prune(model: nn.Module, batches: Sequence[Batch], budget: dict[str, float], seed: int) -> nn.Module:
    """`model` with heads and neurons removed in place; nothing is drawn."""
    sites = sites_of(model)
    cost = flops_of_units(sites, batches)
    means, variances = _moments(model, sites, batches)
    scores = {}
    for site in sites:
        fluctuation = variances[site.name] * weight_of(site.output).detach().double().square().sum(0)
        standard = (fluctuation - fluctuation.mean()) / fluctuation.std()
        scores[site.name] = by_unit(standard, site).mean(-1)
    kept = _kept(sites, scores, cost, (1 - budget["flops"]) * total_flops(sites, cost))
    for site in sites:
        bias, gone = bias_of(site.output), ~kept[site.name].repeat_interleave(site.width)
        if bias is None:
            raise ValueError(f"{site.name}: FLAP writes what is removed into a bias, and there is none")
        bias.data += (weight_of(site.output).detach()[:, gone].double() @ means[site.name][gone]).to(bias)
    keep_(model, kept)
    return model


def _moments(model: nn.Module, sites: list[Site], batches: Sequence[Batch]) -> tuple[dict[str, Tensor], ...]:
    """Means and variances of the inputs of the output projections, over all real tokens, in one pass."""
    count, sums, squares = 0, dict[str, Tensor](), dict[str, Tensor]()
    with torch.no_grad(), Stream(model, batches) as stream:
        for layer in stream.layers:
            inputs = {site.name: site.output for site in sites if site.layer == layer}
            count = 0
            for seen in stream.seen(layer, inputs, {}, advance=True):
                for name, x in seen.items():
                    sums[name] = sums.get(name, 0) + x.double().sum(0)
                    squares[name] = squares.get(name, 0) + x.double().square().sum(0)
                count += len(next(iter(seen.values())))
    means = {name: total / count for name, total in sums.items()}
    return means, {name: (squares[name] - count * mean.square()) / (count - 1) for name, mean in means.items()}


def _kept(sites: list[Site], scores: dict[str, Tensor], cost: dict[str, float], spare: float) -> dict[str, Tensor]:
    """Masks: the lowest scores of all go until their cost reaches `spare`."""
    everything = torch.cat([scores[site.name] for site in sites])
    costs = torch.cat([torch.full((site.units,), cost[site.name], dtype=torch.float64) for site in sites])
    order = everything.argsort()
    gone = int((costs[order].cumsum(0) - costs[order] < spare * (1 - ROUNDING)).sum())
    mask = torch.ones(len(everything), dtype=torch.bool)
    mask[order[:gone]] = False
    return {site.name: part for site, part in zip(sites, mask.split([site.units for site in sites]), strict=True)}
