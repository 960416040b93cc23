"""What the output suffers when one linear alone is pruned: measured, not estimated.

Each linear in turn loses the smallest half, then the smallest four fifths of its weights; its score is the mean
divergence of the model's output from the dense one over the first rows of the calibration data, KL for classes, half
the squared error for a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.adapters import effective_weight
from niwaki.anatomy import BlockLinear, is_regression, real_logits, weight_of
from niwaki.data import token_mask
from niwaki.errors import RequestError
from niwaki.masks import Unstructured, choose
from niwaki.observe.units import Batch, frozen, to_device

SPARSITIES = (0.5, 0.8)
ROWS = 64


@torch.no_grad()
def sensitivity(model: nn.Module, linears: Sequence[BlockLinear], data: Iterable[Batch]) -> dict[str, float]:
    """Mean divergence by the name of the linear; at most about 64 rows are looked at, twice for each linear.

    Raises:
        RequestError: no batches.
    """
    numbers = is_regression(model)

    def outputs() -> Tensor:
        return torch.cat([real_logits(model(**batch).logits, token_mask(batch)) for batch in batches])

    with frozen(model, with_gradients=False) as device:
        batches, rows = [], 0
        for batch in data:
            if rows >= ROWS:
                break
            batches.append({k: v[: ROWS - rows] for k, v in to_device(batch, device).items() if isinstance(v, Tensor)})
            rows += len(batches[-1]["input_ids"])
        if not rows:
            raise RequestError("data must hold at least one batch, got none")
        dense = outputs()
        scores = {}
        for linear in linears:
            weight = effective_weight(linear.module)
            losses = []
            for sparsity in SPARSITIES:
                kept = choose(weight.abs(), round(sparsity * linear.size), Unstructured(), linear.name)
                lost = (weight * ~kept).to(weight_of(linear.module).dtype)

                def without(
                    _module: nn.Module, args: tuple[Tensor, ...], output: Tensor, lost: Tensor = lost
                ) -> Tensor:
                    return output - F.linear(args[0], lost)

                hook = linear.module.register_forward_hook(without)
                try:
                    found = outputs()
                finally:
                    hook.remove()
                losses.append(_divergence(dense, found, numbers))
            scores[linear.name] = sum(losses) / len(losses)
    return scores


def _divergence(dense: Tensor, found: Tensor, numbers: bool) -> float:
    if numbers:
        return float((dense - found).square().mean()) / 2
    p, q = (logits.double().log_softmax(-1) for logits in (dense, found))
    return max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))
