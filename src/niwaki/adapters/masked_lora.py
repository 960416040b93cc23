"""LoRA under a mask: `M * (W + s * B @ A)`, the same function in the forward pass and in the merge."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.adapters.effective import (
    _delta,
    adapter_delta,
    mask_of,
)
from niwaki.anatomy import (
    become_,
    linears_of,
    weight_of,
)
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, mask_linear_, unmask_linear_
from niwaki.numerics.layout import to_out_in


class MaskedLoraLinear(LoraLinear):
    """PEFT's LoRA linear around a `MaskedLinear`: `M * (W + s * B @ A)` in the forward pass and in the merge."""

    merges_masked = True
    _stored: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """The mask of the base layer, `[out, in]`, True where the weight is kept."""
        return cast(MaskedLinear, self.get_base_layer()).mask

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What an adapter adds to the stored weight, in its layout, masked: PEFT's merge and unmerge use it."""
        return super().get_delta_weight(adapter) * to_out_in(self, self.mask)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("adapter_names") is not None:
            raise RequestError("adapter_names must not be given for a masked model: a batch has one effective weight")
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or not active:
            return super().forward(x, *args, **kwargs)
        base = cast(MaskedLinear, self.get_base_layer())
        weight, bias = base.masked_weight, base.bias
        result: Tensor | float = 0.0
        for name in active:
            delta = _delta(self, name).to(weight.dtype)
            dropout = self.lora_dropout[name]
            if self.training and getattr(dropout, "p", 0.0) > 0:  # the adapter sees other inputs than the base
                result = result + F.linear(dropout(x), delta)
            else:
                weight = weight + delta
            if self.lora_bias[name]:
                result = result + (self.lora_B[name].bias * self.scaling[name]).to(weight.dtype)
        return F.linear(x, base.watched(weight), bias) + result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's merge, after which the stored weight holds the zeros; what it was is kept for `unmerge`."""
        weight = weight_of(self)
        before = None if self.merged else weight.detach().clone()
        super().merge(safe_merge, adapter_names)
        if self.merged:
            self._stored = self._stored if before is None else before
            weight_of(self).data.mul_(self.mask)

    def unmerge(self) -> None:
        """The stored weight as it was before the first merge, bit for bit."""
        super().unmerge()
        if self._stored is not None:
            weight_of(self).data.copy_(self._stored)
            self._stored = None


def apply_mask_(linear: nn.Module, mask: Tensor) -> None:
    """Make a linear, or a LoRA layer around one, hold a mask `[out, in]` (True: kept) from now on, in place.

    Raises:
        RequestError: a mask of another shape, or a LoRA layer of a kind whose weight is not `W + s * B @ A`.
    """
    if not isinstance(linear, LoraLayer):
        mask_linear_(linear, mask)
        return
    if type(linear) not in (LoraLinear, MaskedLoraLinear) or linear.lora_variant:
        raise RequestError(f"LoRA layer must be plain to hold a mask, got {type(linear).__name__} with a variant")
    if linear.merged:
        raise RequestError("adapter must be unmerged to hold a mask, got a merged one; call unmerge_adapter first")
    mask_linear_(linear.get_base_layer(), mask)
    become_(linear, MaskedLoraLinear)


def lift_mask_(linear: nn.Module) -> None:
    """Take the mask off a linear, or off the base of a LoRA layer, in place; what it hid is as it is stored."""
    base = cast(MaskedLinear, getattr(linear, "base_layer", linear))
    base.mask = torch.ones_like(base.mask)  # so that no zero is written
    unmask_linear_(base)
    if isinstance(linear, MaskedLoraLinear):
        become_(linear, LoraLinear)


def lacks_mask(linear: nn.Module) -> bool:
    """Whether a LoRA layer is around a masked linear and does not hold its mask."""
    return isinstance(linear, LoraLayer) and mask_of(linear) is not None and not isinstance(linear, MaskedLoraLinear)


def fills_zeros(linear: nn.Module) -> bool:
    """Whether it also adds to what that mask says is zero: the forward pass is not that of the masked weight."""
    if not lacks_mask(linear):
        return False
    added, mask = adapter_delta(linear), cast(Tensor, mask_of(linear))
    return isinstance(added, Tensor) and bool(added[~mask.to(added.device)].any())


def mask_adapters_(model: nn.Module) -> None:
    """Put the masks of the base over adapters that were attached (or trained) without them: an explicit request."""
    for linear in linears_of(model):
        mask = mask_of(linear.module)
        if mask is not None:
            apply_mask_(linear.module, mask)
