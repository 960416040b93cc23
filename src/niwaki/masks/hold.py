"""A linear that holds its mask: the forward pass uses `mask * weight`, so a zero stays a zero while training.

The mask is a buffer of its own, a bit a weight, never derived from `weight == 0`. It is not part of the state dict, and
what the state dict gives for the weight is masked: a saved file is an ordinary one, with the zeros in it. The weight
under the mask is left as it was, for a weight that returns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from niwaki.anatomy import become_
from niwaki.errors import RequestError
from niwaki.masks.pack import pack_bits, unpack_bits
from niwaki.numerics.layout import to_out_in


class MaskedLinear(nn.Module):
    """What a linear with a `mask` does. Made by `mask_linear_`.

    The linear is an `nn.Linear`, or a `Conv1D`, which stores its weight `[in, out]`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    bits: Tensor
    """The mask as a buffer, uint8, see `pack_bits`."""
    watch: Callable[[Tensor], None] | None = None
    """Given the gradient of the loss with respect to `mask * weight`, `[out, in]`, at every backward pass."""
    mover: Any = None
    """The controller of dynamic sparsity that moves the mask, if there is one."""

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not torch.compiler.is_compiling():
            _check_merge(sys._getframe(1))
        return super().__getattr__(name)

    @property
    def mask(self) -> Tensor:
        """`[out, in]`, True where the weight is kept; made up anew at every call, so a change of it must be set."""
        return unpack_bits(self.bits, tuple(to_out_in(self, self.weight).shape))

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self.bits = pack_bits(mask)

    @property
    def masked_weight(self) -> Tensor:
        """`mask * weight`, `[out, in]`."""
        return to_out_in(self, self.weight) * self.mask

    def watched(self, weight: Tensor) -> Tensor:
        """`weight`, masked, so that `watch` is given its gradient at masked places too; a frozen one has one then."""
        if self.watch is not None and torch.is_grad_enabled():
            weight = weight if weight.requires_grad else weight.detach().requires_grad_()
            weight.register_hook(self.watch)
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is pickled, is watched and moved by nobody."""
        return {key: value for key, value in self.__dict__.items() if key not in ("watch", "mover")}

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.watched(self.masked_weight), self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = to_out_in(self, self.masked_weight)
        if torch.equal(weight, self.weight):  # the zeros are in it: a second model need not be held to be saved
            weight = self.weight
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()


def _check_merge(caller: FrameType) -> None:
    """Refuse to be what an adapter without the mask is merged into: the mask would take away what it adds to zeros.

    PEFT knows no masks, its layers ask nothing of their base before they merge, and every way of merging is the method
    `merge` of a layer, which reads the weight of the base to write into it. So that is noticed here, and PEFT is left
    as it is for all other models.

    Raises:
        RequestError: `caller` is the merge of an adapter that does not say `merges_masked`.
    """
    if caller.f_code.co_name != "merge":
        return
    layer = caller.f_locals.get("self")
    if isinstance(layer, BaseTunerLayer) and not getattr(layer, "merges_masked", False):
        raise RequestError(
            "adapter must hold the masks of its base to be merged, got one that was attached without; "
            "call niwaki.merge_(model, mask_adapters=True) to lose what it adds to the zeros"
        )


class _MaskedLinear(MaskedLinear, nn.Linear):  # type: ignore[misc]
    pass


class _MaskedConv1D(MaskedLinear, Conv1D):  # type: ignore[misc]
    pass


_MASKED: dict[type[nn.Module], type[MaskedLinear]] = {nn.Linear: _MaskedLinear, Conv1D: _MaskedConv1D}
_PLAIN = {masked: plain for plain, masked in _MASKED.items()}


def mask_linear_(linear: nn.Module, mask: Tensor) -> MaskedLinear:
    """Make a linear hold `mask` from now on, in place; a mask that is there already is replaced.

    Raises:
        RequestError: a mask of another shape, or a linear of a class that is not plain.
    """
    plain = _PLAIN.get(cast(Any, type(linear)), type(linear))
    if plain not in _MASKED:
        raise RequestError(f"linear must be a plain nn.Linear to hold a mask, got {type(linear).__name__}")
    shape = to_out_in(linear, cast(Tensor, linear.weight)).shape
    if mask.shape != shape:
        raise RequestError(f"mask must have the weight's shape {list(shape)}, got {list(mask.shape)}")
    if "bits" in linear._buffers:
        del linear._buffers["bits"]
    linear.register_buffer("bits", pack_bits(mask.to(cast(Tensor, linear.weight).device)), persistent=False)
    become_(linear, _MASKED[plain])
    return cast(MaskedLinear, linear)


def unmask_linear_(linear: MaskedLinear) -> nn.Module:
    """Write the zeros into the weight and make it a plain linear again, in place."""
    linear.weight.data.mul_(to_out_in(linear, linear.mask))
    for name in ("watch", "mover"):
        vars(linear).pop(name, None)
    del linear._buffers["bits"]
    linear._non_persistent_buffers_set.discard("bits")
    become_(linear, _PLAIN[type(linear)])
    return linear
