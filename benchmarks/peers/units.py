"""What the baselines of heads and neurons share: masks of units, what a unit costs, sums for least squares, the cut.

They are of encoders: a site's output is seen where it joins the residual stream, before a norm (`Site.residual_sum`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.adapters import bias_of
from niwaki.anatomy import Site, predictions_of, sites_of, unit_flops
from niwaki.data import mean_length, token_mask
from niwaki.observe.stream import Stream
from niwaki.surgery import cut_

ROUNDING = 1e-9
"""What a sum of costs may be off by, as a share."""
Batch = dict[str, Tensor]
ByUnit = dict[str, Tensor]
"""Site name -> a number for each unit, or rows of such numbers."""
Loss = Callable[[nn.Module, int, Batch], Tensor]
"""Model, number of the batch, batch -> the sum over the rows of what is derived."""


def flops_of_units(sites: list[Site], batches: Sequence[Batch]) -> dict[str, float]:
    """FLOPs of one unit of each site, for a sequence as long as those of `batches` are on average."""
    length = mean_length(batches)
    return {site.name: unit_flops(site, length) for site in sites}


def total_flops(sites: list[Site], cost: dict[str, float]) -> float:
    """FLOPs of all units."""
    return sum(site.units * cost[site.name] for site in sites)


@contextmanager
def masked(sites: list[Site], masks: dict[str, Tensor]) -> Iterator[None]:
    """While open, column j of the input of a site's output projection is multiplied by `masks[name][..., j]`."""

    def hook(name: str) -> Callable[..., Any]:
        return lambda _module, args: (args[0] * masks[name], *args[1:])

    hooks = [site.output.register_forward_pre_hook(hook(site.name)) for site in sites]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def row_gradients(model: nn.Module, sites: list[Site], batches: Sequence[Batch], loss: Loss) -> ByUnit:
    """Derivatives `[rows, columns]` of each row's loss by a mask of ones on the columns of every site, at one."""
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for number, batch in enumerate(batches):
        rows = len(batch["input_ids"])
        masks = {site.name: torch.ones(rows, 1, site.columns, requires_grad=True) for site in sites}
        with masked(sites, masks):
            gradients = torch.autograd.grad(loss(model, number, batch), list(masks.values()))
        for name, gradient in zip(masks, gradients, strict=True):
            found[name].append(gradient[:, 0])
    return {name: torch.cat(parts) for name, parts in found.items()}


def summed_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """The sum of the rows' losses by their labels.

    A sentence encoder has none: in its place stands a number whose derivatives have the curvature that those of a loss
    would have (`Predictions.contrast`, with signs that are drawn).
    """
    outputs = model(**batch)
    if "loss" in outputs:
        return outputs.loss * len(batch["input_ids"])
    return predictions_of(model, outputs, token_mask(batch).bool()).contrast(generator)


def by_unit(columns: Tensor, site: Site) -> Tensor:
    """`[..., units, width]` of numbers for the columns of a site."""
    return columns.unflatten(-1, (site.units, site.width))


class Pair:
    """The same batches in a dense and a pruned model, layer by layer: how far they are apart, to be mended."""

    def __init__(self, dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch]) -> None:
        self.dense, self.pruned = Stream(dense, batches), Stream(pruned, batches)
        self.dense_sites = {site.name: site for site in sites_of(dense)}

    def sums(self, site: Site) -> tuple[Tensor, Tensor]:
        """Over all real tokens `X^T X` and `X^T R` in float64, X the inputs of a site's output projection.

        R `[tokens, width of the model]` is what the projection would have to give, without its bias, for the residual
        stream to be the dense model's. Both models must stand before the site's layer.
        """
        wanted = self.dense_sites[site.name].residual_sum
        if wanted is None or site.residual_sum is None:
            raise ValueError(f"{site.name}: the sum of the residual stream cannot be seen")
        bias = bias_of(site.output)
        gram = cross = torch.zeros((), dtype=torch.float64)
        dense = self.dense.seen(site.layer, {"sum": wanted}, {})
        pruned = self.pruned.seen(site.layer, {"in": site.output, "sum": site.residual_sum}, {"out": site.output})
        with torch.no_grad():
            for want, have in zip(dense, pruned, strict=True):
                inputs = have["in"].double()
                rest = want["sum"] - (have["sum"] - have["out"]) - (0 if bias is None else bias)
                gram, cross = gram + inputs.T @ inputs, cross + inputs.T @ rest.double()
        return gram, cross

    def advance(self, layer: int) -> None:
        """Carry both models' batches through a layer."""
        with torch.no_grad():
            self.dense.advance(layer)
            self.pruned.advance(layer)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.dense.__exit__()
        self.pruned.__exit__()


def keep_(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Remove the units where the mask of a site is False; a site that has none stays as it is."""
    whole = {site.name: torch.arange(site.units) for site in sites_of(model)}
    cut_(model, whole | {name: mask.nonzero().flatten() for name, mask in kept.items()})
