"""What is seen of one batch: hooks on the linears and layers add to the sums, forward and backward.

Gradients are read by hooks on activations, so frozen weights are observed like the rest, and weights never receive a
gradient here (the backward pass costs one forward, not two). They are summed as they come, none is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import (
    BlockLinear,
    Predictions,
    Said,
    Site,
    layers_of,
    layers_run_again,
    left_by_layers,
)
from niwaki.data import token_mask
from niwaki.errors import WorkError
from niwaki.observe.attention import attention_seen
from niwaki.observe.losses import task_loss_backward
from niwaki.observe.statistics import Batch, Need, Statistics, at_tokens

MOST_LEFT = 2**28
"""Bytes that the layers may leave for a backward pass; those of more run again in it."""


def observe_batch(
    model: nn.Module,
    sites: Sequence[Site],
    linears: Sequence[BlockLinear],
    batch: Batch,
    need: Need,
    generator: torch.Generator,
    total: Statistics,
) -> None:
    """Add the sums of one batch, in float32, to `total` in place: those of all linears are not held twice.

    Sums that are vectors are added in double precision, so that they hardly depend on the order of the batches.
    """
    keep, rows = token_mask(batch).bool(), len(batch["input_ids"])
    watch, backward = _Watch(total, sites, keep, need), need.task or need.contrast
    if need.attention:  # made again without its maps, it would come from other kernels
        looking = attention_seen(model, sites, keep, total.sites)
    else:
        much = backward and left_by_layers(model, keep.numel()) > MOST_LEFT
        looking = layers_run_again(model) if much else nullcontext()
    with watch.hooks(linears, layers_of(model)), torch.set_grad_enabled(backward), looking:
        said = Said(model, batch)

    def checked(found: Predictions) -> Predictions:
        if not bool(torch.isfinite(found.values).all()):
            raise WorkError(f"calibration: the model's outputs are not finite; first seen in {watch.first_broken()}")
        return found

    if need.contrast:
        said.backward(keep, lambda found, _: checked(found).contrast(generator), retain_graph=need.task)
        total.token_sizes += [watch.token_sizes] if need.token_sizes else []
    else:
        with torch.no_grad():
            for part in said.parts(keep):
                checked(part())
    if need.task:
        watch.task = True
        task_loss_backward(model, batch, said)
        watch.task = False
        watch.add_units(rows)
    total.tokens += int(keep.sum())
    total.rows += rows


class _Watch:
    """The hooks of one batch, which add what they see to `total`; `task` says whose gradients come by."""

    def __init__(self, total: Statistics, sites: Sequence[Site], keep: Tensor, need: Need) -> None:
        self.total, self.keep, self.need = total, keep, need
        self.sites = {site.name: site for site in sites}
        self.task = False
        self.token_sizes: dict[str, Tensor] = {}
        self.mask_gradients: dict[str, Tensor] = {}
        """Of each site, dL/dm of its units by sequence `[sequences, units]`, over all runs of its layer."""

    @contextmanager
    def hooks(self, linears: Sequence[BlockLinear], layers: Iterable[nn.Module]) -> Iterator[None]:
        """While open, forward passes are seen; gradients are for as long as their graph is there."""
        handles = [linear.module.register_forward_hook(self._linear_hook(linear)) for linear in linears]
        for index, layer in enumerate(layers):
            inside = [linear.name for linear in linears if linear.layer == index]
            handles.append(layer.register_forward_hook(self._layer_hook(inside)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _linear_hook(self, linear: BlockLinear) -> Any:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            sums, x = self.total.linears[linear.name], at_tokens(args[0].detach(), self.keep)
            real = x.float()
            sums.inputs += real.sum(0).double()
            sums.input_squares += real.square().sum(0).double()
            sums.activation_size += float(at_tokens(output.detach(), self.keep).float().abs().sum())
            if not output.requires_grad:
                return
            held = x if self.need.weight_gradients else None
            output.register_hook(lambda g: self._output_gradient(linear, held, g))
            if self.need.task_gradients and linear.writes:
                args[0].register_hook(lambda g: self._unit_gradient(self.sites[linear.site.name], args[0].detach(), g))

        return see

    def _layer_hook(self, linears: list[str]) -> Any:
        def compare(_module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            before, after = args[0].detach()[self.keep].float(), after.detach()[self.keep].float()
            lost = float((1 - F.cosine_similarity(before, after, dim=-1)).sum())
            for name in linears:
                self.total.linears[name].influence += lost

        return compare

    def _output_gradient(self, linear: BlockLinear, x: Tensor | None, gradient: Tensor) -> None:
        sums, g = self.total.linears[linear.name], at_tokens(gradient, self.keep).float()
        if self.task:
            sums.gradient_size += float(g.abs().sum())
            if x is not None:
                sums.weight_gradient += g.T @ x.float()
            return
        squares = g.square()
        sums.gradient_squares += squares.sum(0).double()
        if self.need.gradient_moments and linear.writes:
            sums.gradient_moments += g.T @ g
        if self.need.token_sizes:  # of a layer that runs again, the last run's gradients come first
            later = [self.token_sizes[linear.name]] if linear.name in self.token_sizes else []
            self.token_sizes[linear.name] = torch.cat([squares.sum(1), *later])

    def _unit_gradient(self, site: Site, x: Tensor, gradient: Tensor) -> None:
        """The gradient of a mask on a unit is the sum of input times gradient over the unit's columns."""
        if not self.task:
            return
        products = (x.float() * gradient.float()).reshape(*self.keep.shape, site.units, site.width)
        found = (products.sum(-1) * self.keep[..., None]).sum(1)
        self.mask_gradients[site.name] = self.mask_gradients.get(site.name, 0.0) + found

    def add_units(self, rows: int) -> None:
        """Add what the task loss of each of the `rows` said of masks on the units.

        A row has one loss: where a model chooses among its texts, a mask is on the unit in all of them, and what it
        takes from each alike changes nothing.
        """
        for name, by_sequence in self.mask_gradients.items():
            found = by_sequence.unflatten(0, (rows, -1)).sum(1)
            self.total.sites[name].fisher += found.square().sum(0).double()
            self.total.sites[name].taylor += found.abs().sum(0).double()

    def first_broken(self) -> str:
        """The first linear whose output was not finite."""
        sums = self.total.linears.items()
        return next((name for name, own in sums if not math.isfinite(own.activation_size)), "the task head")
