"""How a linear stores its weight: `[out, in]`, or `[in, out]` where it is GPT-2's `Conv1D`."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_transposed(linear: nn.Module) -> bool:
    """Whether a linear, or the base of a LoRA layer, stores its weight `[in, out]`."""
    return isinstance(getattr(linear, "base_layer", linear), Conv1D)


def to_out_in(linear: nn.Module, weight: Tensor) -> Tensor:
    """A weight or mask of `linear` from `[out, in]` to the layout in which it is stored, or back; a view."""
    return weight.T if is_transposed(linear) else weight
