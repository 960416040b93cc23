"""What the output suffers when one linear alone is pruned: measured, not estimated.

Each linear in turn loses the smallest half, then the smallest four fifths of its weights; its score is the mean
divergence of the model's output from the dense one over rows of the calibration data drawn by the seed, KL for classes,
half the squared error for a number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.adapters import effective_weight
from niwaki.anatomy import BlockLinear, is_regression, real_logits, weight_of
from niwaki.config.patterns import Unstructured
from niwaki.data import token_mask
from niwaki.errors import RequestError
from niwaki.masks import choose
from niwaki.observe import Batch, frozen, to_device

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
    return [
        {name: value[inside] for name, value in data[number].items() if isinstance(value, Tensor)}
        for number, inside in chosen.items()
    ]


@torch.no_grad()
def sensitivity(model: nn.Module, linears: Sequence[BlockLinear], data: Sequence[Batch], seed: int) -> dict[str, float]:
    """Mean divergence by the name of the linear, over `ROWS` drawn rows, twice for each linear.

    Raises:
        RequestError: no rows.
    """

    def outputs() -> Tensor:
        return torch.cat([real_logits(model(**batch).logits, token_mask(batch)) for batch in batches])

    with frozen(model, with_gradients=False) as device:
        batches = [to_device(batch, device) for batch in drawn_rows(data, ROWS, seed)]
        divergence = _divergence_from(outputs(), is_regression(model))
        scores = {}
        for linear in linears:
            losses = []
            for sparsity in SPARSITIES:
                hook = linear.module.register_forward_hook(_without_smallest(linear, sparsity))
                try:
                    losses.append(divergence(outputs()))
                finally:
                    hook.remove()
            scores[linear.name] = sum(losses) / len(losses)
    return scores


def _without_smallest(linear: BlockLinear, sparsity: float) -> Callable[..., Tensor]:
    """A forward hook that takes away what the smallest weights of a linear give."""
    weight = effective_weight(linear.module)
    kept = choose(weight.abs(), round(sparsity * linear.size), Unstructured(), linear.name)
    lost = (weight * ~kept).to(weight_of(linear.module).dtype)

    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output - F.linear(args[0], lost)

    return hook


def _divergence_from(dense: Tensor, numbers: bool) -> Callable[[Tensor], float]:
    """How far logits are from `dense` ones."""

    def divergence(found: Tensor) -> float:
        if numbers:
            return float((dense - found).square().mean()) / 2
        p, q = (logits.double().log_softmax(-1) for logits in (dense, found))
        return max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))

    return divergence
