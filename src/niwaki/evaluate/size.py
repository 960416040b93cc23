"""Bytes of a model: its tensors as they would be saved."""

from __future__ import annotations

import torch
from torch import nn


def size_bytes(model: nn.Module) -> int:
    """Bytes of parameters and persistent buffers; tensors that share their memory count once."""
    sizes: dict[int, int] = {}
    for tensor in model.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            place = tensor.data_ptr()
            sizes[place] = max(sizes.get(place, 0), tensor.numel() * tensor.element_size())
    return sum(sizes.values())
