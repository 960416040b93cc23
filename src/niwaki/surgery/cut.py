"""Real removal: rows of the projections into a site, columns of the projection out of it, LoRA factors included."""

from __future__ import annotations

from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from niwaki.anatomy import Family, Site, family_of, sites_of, unwrap
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, mask_linear_
from niwaki.surgery.plan import Plan


def cut_(model: nn.Module, plan: Plan) -> None:
    """Remove every unit that `plan` does not keep. Sites that keep all their units are left untouched."""
    family = family_of(unwrap(model))
    for site in sites_of(model):
        units = plan[site.name]
        if len(units) == site.units:
            continue
        if site.fixed:
            raise RequestError(f"{site.name}: the heads of {family.model_types[0]} models cannot be removed")
        columns = (units[:, None] * site.width + torch.arange(site.width)).flatten()
        for linear in site.inputs:
            _slice_(linear, columns, axis=0)
        _slice_(site.output, columns, axis=1)
        if site.attention is not None:
            _refresh_(site, family, len(units))


def _slice_(linear: nn.Module, index: Tensor, axis: int) -> None:
    """Keep the rows (`axis` 0) or columns (`axis` 1) in `index` of a linear, and of its LoRA factors."""
    base = cast(nn.Linear, getattr(linear, "base_layer", linear))
    base.weight = _take(base.weight, index, axis)
    if isinstance(base, MaskedLinear):
        mask_linear_(base, base.mask.index_select(axis, index.to(base.mask.device)))
    if axis == 0 and base.bias is not None:
        base.bias = _take(base.bias, index, 0)
    base.out_features, base.in_features = base.weight.shape
    if not isinstance(linear, LoraLayer):
        return
    # W_eff = W + s B A: rows of the sum are rows of B, columns are columns of A.
    factors = linear.lora_B if axis == 0 else linear.lora_A
    for factor in factors.values():
        part = cast(nn.Linear, factor)
        part.weight = _take(part.weight, index, axis)
        if axis == 0 and part.bias is not None:
            part.bias = _take(part.bias, index, 0)
        part.out_features, part.in_features = part.weight.shape
    linear.in_features, linear.out_features = base.in_features, base.out_features


def _take(parameter: Tensor, index: Tensor, axis: int) -> nn.Parameter:
    sliced = parameter.detach().index_select(axis, index.to(parameter.device)).contiguous()
    return nn.Parameter(sliced, requires_grad=parameter.requires_grad)


def _refresh_(site: Site, family: Family, heads: int) -> None:
    """Set the integers that the attention module keeps about its heads."""
    setattr(site.attention, family.head_count, heads)
    if family.all_head_size is not None:
        setattr(site.attention, family.all_head_size, heads * site.width)
