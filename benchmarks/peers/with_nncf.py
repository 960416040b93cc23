"""NNCF: `nncf.prune` by magnitude over all linears of the blocks, which needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nncf  # type: ignore[import-not-found]
from torch import Tensor, nn

from niwaki.anatomy import linears_of
from niwaki.data import without_labels


def prune(model: nn.Module, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> nn.Module:
    """`model` with the zeros written into its weights; no data are looked at."""
    inside = {id(linear.module) for linear in linears_of(model)}
    weighty = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]
    others = [f".*{name}.*" for name, module in weighty if id(module) not in inside]
    example = without_labels(batches[0])
    pruned: Any = nncf.prune(
        model,
        mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
        ratio=budget["sparsity"],
        ignored_scope=nncf.IgnoredScope(patterns=others, validate=False),
        examples_inputs=example,
    )
    return nncf.strip(pruned, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)
