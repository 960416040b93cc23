"""Neural Compressor 2.6, the last release with pruning: SparseGPT in one shot, the same sparsity in every linear."""

from __future__ import annotations

from collections.abc import Sequence

from neural_compressor.training import WeightPruningConfig, prepare_pruning  # type: ignore[import-not-found]
from torch import Tensor, nn

from niwaki.anatomy import linears_of
from rows import one_by_one


def prune(model: nn.Module, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> nn.Module:
    """`model`, pruned in place; nothing is drawn."""
    inside = {id(linear.module) for linear in linears_of(model)}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    config = WeightPruningConfig(
        [{"pruning_type": "sparse_gpt", "op_names": names, "pattern": "1x1"}], target_sparsity=budget["sparsity"]
    )
    prepare_pruning(model, config, dataloader=one_by_one(batches), device="cpu")
    return model
