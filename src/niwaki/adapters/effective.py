"""LoRA seen as part of the weight: `W_eff = M * (W + sum over active adapters of s * B @ A)`, M a mask if held.

Scores are taken on, and repairs written to, the effective weight; the adapter itself is left as trained. Under a mask
the forward pass and the merge are the same function: PEFT's own layer with `get_delta_weight` masked, so that
`merge_and_unload`, `unmerge`, `save_pretrained`, several adapters and rank-stabilised LoRA work as they are. W itself
is left as it was under the mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import (
    weight_of,
)
from niwaki.masks import MaskedLinear
from niwaki.numerics.layout import to_out_in


def mask_of(linear: nn.Module) -> Tensor | None:
    """The mask that a linear or the base of a LoRA layer holds, `[out, in]`, or None."""
    base = getattr(linear, "base_layer", linear)
    return base.mask if isinstance(base, MaskedLinear) else None


def adapter_delta(linear: nn.Module) -> Tensor | float:
    """What the active, unmerged adapters add to the stored weight, `[out, in]`; 0.0 for a plain linear."""
    if not isinstance(linear, LoraLayer) or linear.merged or linear.disable_adapters:
        return 0.0
    deltas = [_delta(linear, name) for name in linear.active_adapters if name in linear.lora_A]
    return cast(Tensor, sum(deltas)) if deltas else 0.0


def _delta(linear: LoraLayer, adapter: str) -> Tensor:
    """What one adapter adds to the stored weight, `[out, in]`."""
    return to_out_in(cast(nn.Module, linear), cast(Any, linear).get_delta_weight(adapter))


def effective_weight(linear: nn.Module) -> Tensor:
    """The weight the forward pass uses, `[out, in]`, detached, in float32 whatever it is stored in."""
    mask = mask_of(linear)
    weight = weight_of(linear).float() + adapter_delta(linear)
    return (weight if mask is None else weight * mask).detach()


def dense_weight(linear: nn.Module) -> Tensor:
    """The weight the forward pass would use without a mask, `[out, in]`, detached: what would return is in it."""
    weight = weight_of(linear).detach()
    if not isinstance(linear, LoraLayer) or linear.merged or linear.disable_adapters:
        return weight.clone()
    with torch.no_grad():
        for name in (name for name in linear.active_adapters if name in linear.lora_A):
            weight = weight + to_out_in(linear, LoraLinear.get_delta_weight(cast(LoraLinear, linear), name))
    return weight


def set_effective_weight_(linear: nn.Module, weight: Tensor) -> None:
    """Store `weight` minus what the adapters add, so that the forward pass uses `weight`; nothing under a mask.

    It is rounded once, to what the weight is stored in.
    """
    with torch.no_grad():
        stored, mask = weight_of(linear), mask_of(linear)
        wanted = (weight.to(stored.device, torch.float32) - adapter_delta(linear)).to(stored.dtype)
        stored.copy_(wanted if mask is None else torch.where(mask, wanted, stored))


def bias_of(linear: nn.Module) -> nn.Parameter | None:
    """The bias of a linear or of the base of a LoRA layer."""
    return cast("nn.Parameter | None", getattr(linear, "base_layer", linear).bias)


@contextmanager
def materialized_weights(part: nn.Module) -> Iterator[None]:
    """While open, linears inside `part` run on their effective weight as it is now, adapters and masks made up once."""
    changed = []
    try:
        for module in part.modules():
            plain = isinstance(module, LoraLinear) and not any(module.lora_bias.values())
            if plain or (isinstance(module, MaskedLinear) and module.watch is None):
                weight = effective_weight(module).to(weight_of(module).dtype)
                cast(Any, module).forward = partial(F.linear, weight=weight, bias=bias_of(module))
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward
