"""`torch.nn.utils.prune`: the smallest weights of all linears of the blocks, as its tutorial prunes globally."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune as pruning

from niwaki.anatomy import linears_of


def prune(model: nn.Module, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> nn.Module:
    """`model`, pruned in place; no data are looked at."""
    weights: list[Any] = [(linear.module, "weight") for linear in linears_of(model)]
    pruning.global_unstructured(weights, pruning_method=pruning.L1Unstructured, amount=budget["sparsity"])
    for linear, name in weights:
        pruning.remove(linear, name)
    return model
