"""Torch-Pruning: Fang et al., "DepGraph: towards any structural pruning" (CVPR 2023), as its transformer examples do.

Taylor importance from the gradients of one pass over the calibration rows, ranked over all layers, whole heads, and
only the widths inside attention and FFN (the examples' `--bottleneck`): the width of the residual stream stays, as for
all here. It takes a ratio of channels, not of FLOPs: the ratio that meets the FLOPs is found by bisection.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch_pruning  # type: ignore[import-not-found]
from torch import Tensor, nn

from niwaki.anatomy import count, family_of, sites_of, unwrap, weight_of
from niwaki.data import mean_length, without_labels
from niwaki.surgery.cut import stale_numbers
from niwaki.surgery.modeling_niwaki import set_numbers_
from units import summed_loss

TRIES = 8


def prune(model: nn.Module, batches: Sequence[dict[str, Tensor]], budget: dict[str, float], seed: int) -> nn.Module:
    """A pruned copy of `model`; what a model without a loss is derived by is drawn by `seed`.

    Raises:
        RuntimeError: no ratio meets the FLOPs.
    """
    drawn = torch.Generator().manual_seed(seed)
    model.zero_grad()
    for batch in batches:
        (summed_loss(model, batch, drawn) / len(batch["input_ids"])).backward()
    length = mean_length(batches)
    most = budget["flops"] * count(model, length).block_flops
    low, high, best, least = 0.0, 1.0, None, 1.0
    for _ in range(TRIES):
        ratio = (low + high) / 2
        tried = _pruned(model, batches[0], ratio)
        flops = count(tried, length).block_flops
        least = min(least, flops * budget["flops"] / most)
        if flops <= most:
            high, best = ratio, tried
        else:
            low = ratio
    if best is None:
        raise RuntimeError(f"no ratio of channels leaves fewer than {least:.2f} of the FLOPs")
    best.zero_grad()
    return best


def _pruned(model: nn.Module, batch: dict[str, Tensor], ratio: float) -> nn.Module:
    """A copy of `model` without `ratio` of its heads, and of all widths."""
    pruned = copy.deepcopy(model)
    for own, other in zip(pruned.parameters(), model.parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.clone()
    sites = sites_of(pruned)
    attention = [site for site in sites if site.kind == "attention"]
    inside = {id(module) for site in sites for module in site.inputs}
    torch_pruning.pruner.BasePruner(
        pruned,
        example_inputs=without_labels(batch),
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=ratio,
        head_pruning_ratio=ratio,
        num_heads={linear: site.units for site in attention for linear in site.inputs},
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[m for m in pruned.modules() if isinstance(m, nn.Linear) and id(m) not in inside],
        output_transform=lambda output: output[0].sum(),
    ).step()
    for site in attention:
        assert site.attention is not None
        heads = weight_of(site.output).shape[1] // site.width
        set_numbers_(site.attention, stale_numbers(site, family_of(unwrap(pruned)), heads, heads))
    return pruned
