"""What the output suffers when one linear alone is pruned: measured, not estimated.

Each linear in turn loses the smallest half, then the smallest four fifths of its weights; its score is the mean
divergence of the model's predictions from the dense ones (`niwaki.anatomy.predictions`) over rows of the calibration
data drawn by the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.adapters import effective_weight
from niwaki.anatomy import BlockLinear, Part, Said, weight_of
from niwaki.config.patterns import Unstructured
from niwaki.data import some_rows, token_mask, without_labels
from niwaki.errors import RequestError
from niwaki.masks import choose
from niwaki.observe import Batch, frozen, to_device
from niwaki.processes import Parts, shared_out

SPARSITIES = (0.5, 0.8)
ROWS = 64


def drawn_rows(data: Sequence[Batch], rows: int, seed: int) -> list[Batch]:
    """`rows` rows of all batches drawn without replacement, as the parts of their batches; all where there are fewer.

    Raises:
        RequestError: no rows.
    """
    places = [(number, row) for number, batch in enumerate(data) for row in range(len(batch["input_ids"]))]
    if not places:
        raise RequestError("data must hold at least one batch, got none")
    chosen: dict[int, list[int]] = {}
    for number, row in sorted(random.Random(seed).sample(places, min(rows, len(places)))):
        chosen.setdefault(number, []).append(row)
    tensors = ({k: v for k, v in batch.items() if isinstance(v, Tensor)} for batch in map(data.__getitem__, chosen))
    return [some_rows(batch, inside) for batch, inside in zip(tensors, chosen.values(), strict=True)]


Divergence = Callable[[Sequence[tuple[BlockLinear, Tensor]]], float]
"""Linears, each with the weights `[out, in]` that it loses, 0 where one stays -> how far the predictions go."""


@contextmanager
def divergence_of(model: nn.Module, data: Sequence[Batch], seed: int) -> Iterator[Divergence]:
    """While open: the mean divergence of the model's predictions from those of all weights, over `ROWS` drawn rows.

    Raises:
        RequestError: no rows.
    """

    def outputs() -> Iterator[list[Part]]:
        for batch in batches:
            yield Said(model, batch).parts(token_mask(batch).bool())

    def without(losses: Sequence[tuple[BlockLinear, Tensor]]) -> float:
        with ExitStack() as hooks:
            for linear, lost in losses:
                hook = linear.module.register_forward_hook(_without(linear, lost))
                hooks.callback(hook.remove)
            pairs = (pair for parts in zip(outputs(), dense, strict=True) for pair in zip(*parts, strict=True))
            found = [ours().double().divergence_from(theirs().double()) for ours, theirs in pairs]
            return max(0.0, float(torch.cat(found).mean()))

    with torch.no_grad(), frozen(model, with_gradients=False) as device:
        drawn = drawn_rows(data, ROWS, seed)
        batches = [to_device(without_labels(batch), device) for batch in drawn]
        dense = list(outputs())
        yield without


def sensitivity(model: nn.Module, linears: Sequence[BlockLinear], data: Sequence[Batch], seed: int) -> dict[str, float]:
    """Mean divergence by the name of the linear, over `ROWS` drawn rows, twice for each linear; processes share them.

    Raises:
        RequestError: no rows.
    """
    with divergence_of(model, data, seed) as without:

        def divergence(linear: BlockLinear) -> Parts:
            weight = effective_weight(linear.module)
            zeros = [round(sparsity * linear.size) for sparsity in SPARSITIES]
            kept = (choose(weight.abs(), count, Unstructured(), linear.name) for count in zeros)
            return {"mean": sum(without([(linear, weight * ~mask)]) for mask in kept) / len(SPARSITIES)}

        found = shared_out(linears, divergence)
    return {linear.name: part["mean"] for linear, part in zip(linears, found, strict=True)}


def _without(linear: BlockLinear, lost: Tensor) -> Callable[..., Tensor]:
    """A forward hook that takes away what the weights `lost` of a linear give."""
    lost = lost.to(weight_of(linear.module).dtype)

    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output - F.linear(args[0], lost)

    return hook
