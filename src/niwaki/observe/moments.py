"""The second moments of the inputs of linears, summed a layer at a time: together they are too large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from niwaki.anatomy import BlockLinear, evaluation_mode, layers_of, linears_of
from niwaki.numerics.gram import gram, rebatch
from niwaki.observe.statistics import Batch, Statistics
from niwaki.observe.stream import Stream
from niwaki.observe.tokens import TokenWeights
from niwaki.processes import add_up, count, number
from niwaki.progress import bar


@torch.no_grad()
def input_moments(
    model: nn.Module,
    data: Sequence[Batch],
    weights: TokenWeights | None = None,
    *,
    only_writing: bool = False,
    shared: bool = False,
    progress: bool = False,
) -> Iterator[tuple[BlockLinear, Tensor]]:
    """Yield each linear of `model` as it stands with its `[in, in]` sum of w x x^T, in one forward pass over the data.

    With `only_writing` those that write into the residual stream alone. No more than the moments of one layer are held
    at a time; with `shared` two, and of several processes each is given its own part of the linears: the layers in
    turn, as many of them at once as there are processes.
    """
    own: list[tuple[BlockLinear, Tensor]] = []
    every = [linear for linear in linears_of(model) if linear.writes or not only_writing]
    with evaluation_mode(model), Stream(model, data) as run:
        layers = range(len(layers_of(model)))
        for index in bar(layers, phase="moments", unit="layers", progress=progress):
            linears = [linear for linear in every if linear.layer == index]
            inputs = {linear.name: linear.module for linear in linears}
            moments = {
                name: torch.zeros(linear.shape[1], linear.shape[1], dtype=torch.double, device=run.device)
                for name, linear in zip(inputs, linears, strict=True)
            }
            if linears:
                parts = enumerate(run.seen(index, inputs, {}, advance=True))
                weighed = ({n: weighted(x, weights, batch, n) for n, x in part.items()} for batch, part in parts)
                for seen in rebatch(weighed, run.together):
                    for name, x in seen.items():
                        moments[name] += gram(x)
            else:  # its units are all gone
                run.advance(index)
            for linear in linears:
                total = add_up(moments.pop(linear.name))
                if not shared or index % count() == number():
                    own.append((linear, total))
            if not shared or (index + 1) % count() == 0 or index + 1 == len(layers):
                yield from own
                own.clear()


def with_moments(
    model: nn.Module,
    statistics: Statistics,
    data: Sequence[Batch],
    weights: TokenWeights | None,
    *,
    only_writing: bool = False,
    shared: bool = False,
    progress: bool = False,
) -> Iterator[tuple[BlockLinear, Statistics]]:
    """Each linear of `model` with `statistics` that hold its whole second moments, and no other linear's.

    `only_writing` and `shared` as in `input_moments`.
    """
    found = input_moments(model, data, weights, only_writing=only_writing, shared=shared, progress=progress)
    for linear, moments in found:
        yield linear, statistics.with_moments(linear.name, moments)


def weighted(x: Tensor, weights: TokenWeights | None, batch: int, name: str) -> Tensor:
    """`x` `[tokens, n]` times the roots of the weights that the tokens of this batch have at a linear, in float32."""
    return x.float() if weights is None else x.float() * weights[batch][name].sqrt()[:, None]
