"""K-prune: Park et al., "Accurate retraining-free pruning for pretrained encoder-based language models" (ICLR 2024).

From the paper. From the first site to the last: (1) of every unit from this site on, predictive knowledge, half the
squared derivative of the divergence from the dense model at temperature 2, and representational knowledge, the energy
of what it adds to the residual stream; (2) a threshold over all of them, heads weighed by 64, so that what is above it
meets what is left of the FLOPs; (3) this site loses what is below, and the output weights of what stays are those that
best restore the dense residual stream (least squares). Knowledge is taken column by column and averaged over a head's
columns, over tokens and over the width of the model, since the authors' constants are for that; derivatives are by row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.anatomy import Predictions, Site, predictions_of, sites_of, weight_of
from niwaki.data import token_mask, without_labels
from units import ROUNDING, Batch, Pair, by_unit, flops_of_units, keep_, row_gradients, total_flops

TEMPERATURE, HEADS, REPRESENTATION = 2.0, 64.0, 2.5e-4
"""gamma, mu and lambda of the paper."""


def prune(model: nn.Module, batches: Sequence[Batch], budget: dict[str, float], seed: int) -> nn.Module:
    """`model` with heads and neurons removed in place; nothing is drawn."""
    sites, dense = sites_of(model), copy.deepcopy(model)
    cost = flops_of_units(sites, batches)
    left = budget["flops"] * total_flops(sites, cost) * (1 + ROUNDING)
    with torch.no_grad():
        taught = [_said(dense, batch) for batch in batches]
    with Pair(dense, model, batches) as pair:
        for index in range(len(sites)):
            ahead = sites_of(model)[index:]
            scores = _scores(model, ahead, batches, taught, cost)
            kept = scores[ahead[0].name] > _threshold(ahead, scores, cost, left)
            keep_(model, {ahead[0].name: kept})
            _tune_(sites_of(model)[index], pair)
            left -= int(kept.sum()) * cost[ahead[0].name]
            if ahead[0].kind == "ffn":
                pair.advance(ahead[0].layer)
    return model


def _said(model: nn.Module, batch: Batch) -> Predictions:
    """Its predictions, logits divided by the temperature."""
    found = predictions_of(model, model(**without_labels(batch)), token_mask(batch).bool())
    return replace(found, values=found.values / TEMPERATURE)


def _scores(
    model: nn.Module, ahead: list[Site], batches: Sequence[Batch], taught: list[Predictions], cost: dict[str, float]
) -> dict[str, Tensor]:
    """Knowledge of every unit, by its FLOPs."""
    energy, tokens = {site.name: torch.zeros(site.columns) for site in ahead}, 0

    def loss(model: nn.Module, number: int, batch: Batch) -> Tensor:
        nonlocal tokens
        real = token_mask(batch).bool()
        tokens += int(real.sum())

        def note(site: Site):
            def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                energy[site.name] += args[0].detach()[real].square().sum(0)

            return add

        hooks = [site.output.register_forward_pre_hook(note(site)) for site in ahead]
        said = _said(model, batch)
        for hook in hooks:
            hook.remove()
        return TEMPERATURE**2 * said.divergence_from(taught[number]).sum()

    gradients = row_gradients(model, ahead, batches, loss)
    scores = {}
    for site in ahead:
        predictive = gradients[site.name].square().mean(0) / 2
        added = energy[site.name] / tokens * weight_of(site.output).detach().square().mean(0)
        knowledge = by_unit(predictive + REPRESENTATION * added, site).mean(-1)
        scores[site.name] = knowledge * (HEADS if site.kind == "attention" else 1.0) / cost[site.name]
    return scores


def _threshold(ahead: list[Site], scores: dict[str, Tensor], cost: dict[str, float], left: float) -> float:
    """The lowest score such that the units above it cost at most `left`."""
    everything = torch.cat([scores[site.name] for site in ahead])
    costs = torch.cat([torch.full((site.units,), cost[site.name], dtype=torch.float64) for site in ahead])
    order = everything.argsort()
    after = costs.sum() - costs[order].cumsum(0)
    enough = (after <= left).nonzero()
    return float(everything[order[int(enough[0])]]) if costs.sum() > left else -torch.inf


def _tune_(site: Site, pair: Pair) -> None:
    if site.units:
        gram, cross = pair.sums(site)
        weight_of(site.output).data.copy_(torch.linalg.lstsq(gram, cross, driver="gelsd").solution.T)
