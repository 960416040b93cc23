"""A linear that holds its mask: the forward pass uses `mask * weight`, so a zero stays a zero while training.

The mask is a buffer of its own, never derived from `weight == 0`. It is not part of the state dict, and what the state
dict gives for the weight is masked: a saved file is an ordinary one, with the zeros in it. The weight under the mask
is left as it was, for a weight that returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.errors import RequestError


class MaskedLinear(nn.Linear):
    """An `nn.Linear` with a buffer `mask` `[out, in]`, True where the weight is kept. Made by `mask_linear_`."""

    mask: Tensor
    watch: Callable[[Tensor], None] | None = None
    """Given the gradient of the loss with respect to `mask * weight`, `[out, in]`, at every backward pass."""
    moving: bool = False
    """Whether dynamic sparsity moves the mask."""

    @property
    def masked_weight(self) -> Tensor:
        """`mask * weight`, `[out, in]`."""
        return self.weight * self.mask

    def watched(self, weight: Tensor) -> Tensor:
        """`weight`, masked, so that `watch` is given its gradient at masked places too; a frozen one has one then."""
        if self.watch is not None and torch.is_grad_enabled():
            weight = weight if weight.requires_grad else weight.detach().requires_grad_()
            weight.register_hook(self.watch)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.watched(self.masked_weight), self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.masked_weight if keep_vars else self.masked_weight.detach()


def mask_linear_(linear: nn.Linear, mask: Tensor) -> MaskedLinear:
    """Make a linear hold `mask` from now on, in place; a mask that is there already is replaced.

    Raises:
        RequestError: a mask of another shape, or a linear of a class that is not plain.
    """
    if mask.shape != linear.weight.shape:
        raise RequestError(f"mask must have the weight's shape {list(linear.weight.shape)}, got {list(mask.shape)}")
    if type(linear) not in (nn.Linear, MaskedLinear):
        raise RequestError(f"linear must be a plain nn.Linear to hold a mask, got {type(linear).__name__}")
    if "mask" in linear._buffers:
        del linear._buffers["mask"]
    linear.register_buffer("mask", mask.detach().bool().to(linear.weight.device), persistent=False)
    linear.__class__ = MaskedLinear
    return cast(MaskedLinear, linear)


def unmask_linear_(linear: MaskedLinear) -> nn.Linear:
    """Write the zeros into the weight and make it a plain `nn.Linear` again, in place."""
    linear.weight.data.mul_(linear.mask)
    linear.watch = None
    del linear._buffers["mask"]
    linear._non_persistent_buffers_set.discard("mask")
    cast(Any, linear).__class__ = nn.Linear
    return linear
