"""A copy of a model that takes no memory of its own: its weights lie in a file.

The file is mapped into memory, so the system reads what is looked at, and can forget it whenever memory is short.
"""

from __future__ import annotations

import copy
import mmap
import tempfile
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
_ALIGNED = 64
"""Bytes of which the place of a tensor in the file is a multiple."""


def mapped_copy(model: Model) -> Model:
    """A copy of `model` whose tensors lie in a temporary file, but for those that are on another device than the CPU.

    The file has no name any more, and goes with the copy. What is written to the copy stays in memory.
    """
    tensors = [tensor for tensor in chain(model.parameters(), model.buffers()) if _can_be_mapped(tensor)]
    if not tensors:
        return copy.deepcopy(model)
    with tempfile.TemporaryFile() as file:
        places = []
        for tensor in tensors:
            file.seek(-file.tell() % _ALIGNED, 1)
            places.append(file.tell())
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    mapped: dict[int, Tensor] = {}
    for tensor, place in zip(tensors, places, strict=True):
        values = torch.frombuffer(data, dtype=tensor.dtype, count=tensor.numel(), offset=place).view(tensor.shape)
        learns = tensor.requires_grad
        mapped[id(tensor)] = nn.Parameter(values, learns) if isinstance(tensor, nn.Parameter) else values
    return copy.deepcopy(model, mapped)


def _can_be_mapped(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.numel() > 0
