"""LoRA seen as part of the linear: `W_eff = M * (W + sum over active adapters of s * B @ A)`, M a mask if held.

What an adapter adds to the bias (`lora_bias`) counts alike: `b_eff = b + sum over active adapters of s * b_B`. Scores
are taken on, and repairs written to, what is effective; the adapter itself is left as trained. Under a mask
the forward pass and the merge are the same function: PEFT's own layer with `get_delta_weight` masked, so that
`merge_and_unload`, `unmerge`, `save_pretrained`, several adapters and rank-stabilised LoRA work as they are. W itself
is left as it was under the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import running, weight_of
from niwaki.masks import MaskedLinear
from niwaki.numerics.layout import to_out_in


def mask_of(linear: nn.Module) -> Tensor | None:
    """The mask that a linear or the base of a LoRA layer holds, `[out, in]`, or None."""
    base = getattr(linear, "base_layer", linear)
    return base.mask if isinstance(base, MaskedLinear) else None


def adapter_delta(linear: nn.Module) -> Tensor | float:
    """What the active, unmerged adapters add to the stored weight, `[out, in]`; 0.0 for a plain linear."""
    deltas = [_delta(cast(LoraLayer, linear), name) for name in _adding(linear)]
    return cast(Tensor, sum(deltas)) if deltas else 0.0


def _adding(linear: nn.Module) -> list[str]:
    """The adapters that add to what a linear stores in its forward pass: active ones, none while merged or disabled."""
    if not isinstance(linear, LoraLayer) or linear.merged or linear.disable_adapters:
        return []
    return [name for name in linear.active_adapters if name in linear.lora_A]


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
    weight = weight_of(linear).detach().clone()
    with torch.no_grad():
        for name in _adding(linear):
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
    """The stored bias of a linear or of the base of a LoRA layer, without what the adapters add to it."""
    return cast("nn.Parameter | None", getattr(linear, "base_layer", linear).bias)


def adapter_bias(linear: nn.Module) -> Tensor | float:
    """What the active, unmerged adapters add to the output whatever the input (`lora_bias`), `[out]`; else 0.0."""
    layer = cast(LoraLayer, linear)
    added = [
        cast(nn.Linear, layer.lora_B[name]).bias.detach().float() * layer.scaling[name]
        for name in _adding(linear)
        if layer.lora_bias[name]
    ]
    return cast(Tensor, sum(added)) if added else 0.0


def effective_bias(linear: nn.Module) -> Tensor | None:
    """The bias the forward pass uses, `[out]`, detached, in float32 whatever it is stored in; None without one."""
    stored, added = bias_of(linear), adapter_bias(linear)
    if stored is None:
        return added if isinstance(added, Tensor) else None
    return stored.detach().float() + added


def set_effective_bias_(linear: nn.Module, bias: Tensor) -> None:
    """Store `bias` minus what the adapters add, so that the forward pass uses `bias`; the linear must store one.

    It is rounded once, to what the bias is stored in.
    """
    with torch.no_grad():
        stored = cast(nn.Parameter, bias_of(linear))
        stored.copy_(bias.to(stored.device, torch.float32) - adapter_bias(linear))


@contextmanager
def materialized_weights(part: nn.Module) -> Iterator[None]:
    """While open, linears inside `part` run on their effective weight and bias as they are now, made up once."""
    made_up = (
        module
        for module in part.modules()
        if isinstance(module, LoraLinear) or (isinstance(module, MaskedLinear) and module.watch is None)
    )
    with running((module, _made_up(module)) for module in made_up):
        yield


def _made_up(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a linear computes as it is now, in the precision that it is stored in."""
    dtype, bias = weight_of(linear).dtype, effective_bias(linear)
    weight = effective_weight(linear).to(dtype)
    return partial(F.linear, weight=weight, bias=None if bias is None else bias.to(dtype))
