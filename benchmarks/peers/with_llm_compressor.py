"""llm-compressor: SparseGPT (Frantar & Alistarh 2023), one shot, the same sparsity in every linear of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor import oneshot  # type: ignore[import-not-found]
from llmcompressor.modifiers.pruning import SparseGPTModifier  # type: ignore[import-not-found]
from torch import Tensor
from transformers import AutoTokenizer

from niwaki.anatomy import layers_of
from rows import one_by_one


def prune(model: Any, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> Any:
    """`model`, pruned in place, one layer after the other; nothing is drawn."""
    layer = type(layers_of(model)[0]).__name__
    recipe = SparseGPTModifier(sparsity=budget["sparsity"], targets=[layer])
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(model.name_or_path),  # asked for, though the rows are ready
        dataset=one_by_one(batches),
        recipe=recipe,
        sequential_targets=[layer],
        pipeline="sequential",
    )
    return model
