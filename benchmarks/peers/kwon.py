"""Kwon et al., "A fast post-training pruning framework for transformers" (NeurIPS 2022), from the paper.

Mask search: with the diagonal of the empirical Fisher information of the masks, for each number of heads the cheapest
choice of heads and neurons within the FLOPs; the one that loses least. Rearrangement: within each site, the greedy
exchange under the whole Fisher block of that site. Tuning: site by site, the masks that stay become the numbers which
best restore the dense residual stream, damped by 1 towards 1; where one leaves [-10, 10] tuning stops.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.anatomy import Site, sites_of, weight_of
from units import ROUNDING, Batch, ByUnit, Pair, by_unit, flops_of_units, keep_, row_gradients, summed_loss, total_flops

DAMPING, FARTHEST = 1.0, 10.0


def prune(model: nn.Module, batches: Sequence[Batch], budget: dict[str, float], seed: int) -> nn.Module:
    """`model` with heads and neurons removed in place; what a model without a loss is derived by is drawn by `seed`."""
    sites, dense = sites_of(model), copy.deepcopy(model)
    cost = flops_of_units(sites, batches)
    drawn = torch.Generator().manual_seed(seed)
    columns = row_gradients(model, sites, batches, lambda m, _, batch: summed_loss(m, batch, drawn))
    gradients = {site.name: by_unit(columns[site.name], site).sum(-1) for site in sites}
    kept = _searched(sites, gradients, cost, budget["flops"] * total_flops(sites, cost))
    keep_(model, {name: _rearranged(kept[name], gradients[name]) for name in kept})
    _tune_(model, dense, batches)
    return model


def _searched(sites: list[Site], gradients: ByUnit, cost: dict[str, float], most: float) -> dict[str, Tensor]:
    """The masks: of all numbers of heads, with as many neurons as are left room for, those that lose least."""
    fisher = {name: rows.square().mean(0) for name, rows in gradients.items()}
    pools = {kind: [site for site in sites if site.kind == kind] for kind in ("attention", "ffn")}
    scores = {kind: torch.cat([fisher[site.name] for site in pool]) for kind, pool in pools.items()}
    order = {kind: score.argsort(descending=True) for kind, score in scores.items()}
    # What is lost when so many are kept, the best of them.
    lost = {kind: score.sum() - torch.cat([score.new_zeros(1), score[order[kind]].cumsum(0)])
            for kind, score in scores.items()}  # fmt: skip
    head, neuron = (cost[pools[kind][0].name] for kind in ("attention", "ffn"))
    choices = []
    for heads in range(len(scores["attention"]) + 1):
        neurons = min(int((most * (1 + ROUNDING) - heads * head) // neuron), len(scores["ffn"]))
        if neurons >= 0:
            choices.append((float(lost["attention"][heads] + lost["ffn"][neurons]), heads, neurons))
    _, heads, neurons = min(choices)
    found = {}
    for kind, count in (("attention", heads), ("ffn", neurons)):
        mask = torch.zeros(len(scores[kind]), dtype=torch.bool)
        mask[order[kind][:count]] = True
        parts = mask.split([site.units for site in pools[kind]])
        found |= {site.name: part for site, part in zip(pools[kind], parts, strict=True)}
    return found


def _rearranged(mask: Tensor, gradients: Tensor) -> Tensor:
    """As many units of a site as before: each in turn joins those that go, and whose going costs most comes back.

    The cost of a set that goes is `1^T F 1` over it, F = G^T G, so the squared length of the sum of its gradients.
    """
    fisher = gradients.double().T @ gradients.double()
    gone_count = int((~mask).sum())
    if gone_count in (0, len(mask)):
        return mask
    order = fisher.diagonal().argsort()
    gone = torch.zeros_like(mask)
    gone[order[:gone_count]] = True
    shared = fisher[:, gone].sum(1)
    for unit in order[gone_count:].tolist():
        gone[unit] = True
        shared += fisher[:, unit]
        # The cost of the set without i is that of the set, less `2 shared_i - F_ii`.
        gain = (2 * shared - fisher.diagonal()).masked_fill(~gone, -torch.inf)
        back = int(gain.argmax())
        gone[back] = False
        shared -= fisher[:, back]
    return ~gone


def _tune_(model: nn.Module, dense: nn.Module, batches: Sequence[Batch]) -> None:
    sites = sites_of(model)
    with Pair(dense, model, batches) as pair:
        for site in sites:
            if site.units:
                weight = weight_of(site.output).detach().double()
                gram, cross = pair.sums(site)
                normal = by_unit(by_unit((weight.T @ weight) * gram, site).sum(-1).T, site).sum(-1)
                wanted = by_unit((weight.T * cross).sum(1), site).sum(-1)
                eye = torch.eye(site.units, dtype=torch.float64)
                masks = 1 + torch.linalg.solve(normal + DAMPING * eye, wanted - normal.sum(1))
                if masks.abs().max() > FARTHEST:
                    return
                weight_of(site.output).data.copy_(weight * masks.repeat_interleave(site.width))
            if site.kind == "ffn":
                pair.advance(site.layer)
