"""The second moments of the inputs of every linear, summed a layer at a time: together they are too large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from niwaki.anatomy import BlockLinear, evaluation_mode, layers_of, linears_of
from niwaki.observe import Batch
from niwaki.observe_tokens import TokenWeights
from niwaki.stream import Stream


@torch.no_grad()
def input_moments(
    model: nn.Module, data: Sequence[Batch], weights: TokenWeights | None = None, *, progress: bool = False
) -> Iterator[tuple[BlockLinear, Tensor]]:
    """Yield each linear of `model` as it stands with its `[in, in]` sum of w x x^T, in one forward pass over the data.

    No more than the moments of one layer are held at a time.
    """
    with evaluation_mode(model), Stream(model, data) as run:
        layers = range(len(layers_of(model)))
        for index in tqdm(layers, desc="moments", unit="layer", disable=not progress, leave=False):
            linears = [linear for linear in linears_of(model) if linear.layer == index]
            moments: dict[str, Tensor | float] = {linear.name: 0.0 for linear in linears}
            inputs = {linear.name: linear.module for linear in linears}
            for batch, seen in enumerate(run.seen(index, inputs, {}, advance=True)):
                for name, x in seen.items():
                    weighted = x if weights is None else x * weights[batch][name][:, None]
                    moments[name] = moments[name] + (weighted.float().T @ x.float()).double()
            for linear in linears:
                yield linear, torch.as_tensor(moments.pop(linear.name))
