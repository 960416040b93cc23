"""Bytes of a model's tensors, each stored once."""

from __future__ import annotations

from torch import nn


def size_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of the state, shared ones counted once."""
    seen = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()}
    return sum(seen.values())
