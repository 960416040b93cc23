"""Real removal: rows of the projections into a site, columns of the projection out of it, LoRA factors included.

A site may lose all its units. Its linears stay, without rows or columns, but not their LoRA: nothing is left to
adapt, so it is taken off and the adapter's `exclude_modules` says so to whoever loads it again.
"""

from __future__ import annotations

import re
from typing import Any, cast

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from niwaki.adapters import effective_bias, forget_initialisation_
from niwaki.anatomy import (
    Family,
    Site,
    become_,
    columns_of,
    family_of,
    layers_of,
    linear_paths,
    set_features_,
    sites_of,
    unwrap,
    weight_of,
)
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, mask_linear_
from niwaki.numerics.layout import is_transposed
from niwaki.surgery.modeling_niwaki import EmptyAttention, NoInputs, set_numbers_
from niwaki.surgery.shapes import record_shapes_

Kept = dict[str, Tensor]
"""Site name -> sorted indices of the units that stay, of those that it has or, of a model that was cut, had once."""


def cut_(model: nn.Module, kept: Kept, query_heads: bool = False) -> None:
    """Remove every unit that is not in `kept`, and write the new shapes into the model's config.

    Sites that keep all their units are left untouched. Arguments as those of `remove_units_`.
    """
    remove_units_(model, kept, query_heads)
    record_shapes_(model)
    if isinstance(model, PeftModel):
        forget_initialisation_(model)


def remove_units_(model: nn.Module, kept: Kept, query_heads: bool = False) -> None:
    """Remove every unit that is not in `kept`; the config still says what it said.

    With `query_heads` the units of grouped attention are query heads (see `niwaki.anatomy.sites_of`); the keys and
    values of a group go with the last of them.
    """
    family = family_of(unwrap(model))
    layers = layers_of(model)
    sites = sites_of(model)
    for site, whole in zip(sites_of(model, query_heads) if query_heads else sites, sites, strict=True):
        units = kept[site.name]
        if len(units) == site.units:
            continue
        if not len(units):
            site = whole
        if site.fixed:
            raise RequestError(f"{site.name}: the heads of {family.model_types[0]} models cannot be removed")
        groups = len((units // (site.units // site.groups)).unique()) if site.in_groups else len(units)
        for read in site.reads:
            _slice_(read.module, read.rows_of(units), axis=0)
        _slice_(site.output, columns_of(units, site.width), axis=1)
        if site.attention is not None:
            set_numbers_(site.attention, stale_numbers(site, family, len(units), groups))
        if not len(units):
            _take_off_adapters_(model, layers[site.layer], linear_paths(family, site.kind))
            if is_transposed(site.output):
                become_(layers[site.layer].get_submodule(linear_paths(family, site.kind)[-1]), NoInputs)
            if site.attention is not None:
                _replace_attention_(layers[site.layer], family)


def stale_numbers(site: Site, family: Family, units: int, groups: int) -> dict[str, int]:
    """The integers that the attention module of `site` keeps about its heads, as they are with so many units.

    `groups` is the number of key and value heads.
    """
    heads = units * site.heads
    of_group = heads // groups if groups else site.heads
    found = {"units": groups, "heads": heads, "columns": units * site.width, "heads_of_unit": of_group}
    return {name: found[what] for name, what in family.stale.items()}


def _slice_(linear: nn.Module, index: Tensor, axis: int) -> None:
    """Keep the rows (`axis` 0) or columns (`axis` 1) in `index` of a linear, and of its LoRA factors."""
    base = cast(nn.Linear, getattr(linear, "base_layer", linear))
    mask = base.mask if isinstance(base, MaskedLinear) else None
    base.weight = _take(base.weight, index, 1 - axis if is_transposed(base) else axis)
    if mask is not None:
        mask_linear_(base, mask.index_select(axis, index.to(mask.device)))
    if axis == 0 and base.bias is not None:
        base.bias = _take(base.bias, index, 0)
    set_features_(base)
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
    linear.out_features, linear.in_features = weight_of(linear).shape


def _take(parameter: Tensor, index: Tensor, axis: int) -> nn.Parameter:
    sliced = parameter.detach().index_select(axis, index.to(parameter.device)).contiguous()
    return nn.Parameter(sliced, requires_grad=parameter.requires_grad)


def _take_off_adapters_(model: nn.Module, layer: nn.Module, paths: tuple[str, ...]) -> None:
    """Leave the plain linears of an empty site, and tell every adapter not to come back to them."""
    for path in paths:
        linear = layer.get_submodule(path)
        if isinstance(linear, LoraLayer):
            base = cast(nn.Linear, linear.base_layer)
            bias = effective_bias(linear)
            if bias is not None:  # what an adapter adds whatever the input outlives it
                base.bias.data.copy_(bias)
            layer.set_submodule(path, base)
    if isinstance(model, PeftModel):
        prefix = next(name for name, module in unwrap(model).named_modules() if module is layer)
        left = [name for name, module in unwrap(model).named_modules() if isinstance(module, LoraLayer)]
        for config in cast("dict[str, Any]", model.peft_config).values():
            config.exclude_modules = _also(config.exclude_modules, {f"{prefix}.{path}" for path in paths})
            for pattern in (config.rank_pattern, config.alpha_pattern):
                for key in [key for key in pattern if not any(re.match(rf"(.*\.)?({key})$", name) for name in left)]:
                    del pattern[key]


def _also(excluded: Any, names: set[str]) -> Any:
    """`exclude_modules` of an adapter (names, or one regular expression) with `names` added."""
    if isinstance(excluded, str):
        return "|".join([f"(?:{excluded})", *(re.escape(name) for name in sorted(names))])
    return {*(excluded or ()), *names}


def _replace_attention_(layer: nn.Module, family: Family) -> None:
    """An attention module cannot reshape to no heads, so one that computes nothing takes its place."""
    layer.set_submodule(family.attention, EmptyAttention(layer.get_submodule(family.attention), output_inside(family)))


def output_inside(family: Family) -> str | None:
    """Name of the output projection inside the attention module; None where it lies elsewhere."""
    output = family.attention_out.removeprefix(f"{family.attention}.")
    return output if output != family.attention_out else None
