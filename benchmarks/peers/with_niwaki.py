"""Niwaki as it comes: default scores, allocation and repair, no training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import niwaki


def prune(model: nn.Module, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> nn.Module:
    """`model`, pruned in place; layer-adaptive pruning leaves its masks, so they are written into the weights."""
    if "flops" in budget:
        config = niwaki.Structured(flops=budget["flops"], seed=seed)
    else:
        config = niwaki.LayerAdaptive(sparsity=budget["sparsity"], seed=seed)
    niwaki.prune_(model, config, batches)
    niwaki.remove_masks_(model)
    return model
