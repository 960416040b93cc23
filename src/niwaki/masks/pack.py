"""A masked tensor in a compact form: one bit a weight, and the values that are kept, in row-major order.

A float32 tensor with a share s of zeros takes 1/32 + (1 - s) of its dense size. The mask is stored, not guessed from
the values: a kept weight that happens to be 0.0 stays kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from niwaki.errors import RequestError

_BITS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
_WORDS = ((torch.arange(256)[:, None] & _BITS) != 0).view(torch.int64).flatten()
"""Byte -> its eight bits as eight bools, held in one word: to unpack is to look up, faster than any arithmetic."""
_BITS_ON: dict[torch.device, Tensor] = {_BITS.device: _BITS}
_WORDS_ON: dict[torch.device, Tensor] = {_WORDS.device: _WORDS}


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 `[ceil(n / 8)]`, the mask's bits in row-major order, the first in the highest bit."""
    padded = F.pad(mask.detach().bool().flatten(), (0, -mask.numel() % 8)).reshape(-1, 8)
    return (padded * _on(mask.device, _BITS_ON)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of `shape` that `pack_bits` packed, on its device.

    Raises:
        RequestError: too few or too many bits for the shape.
    """
    count = math.prod(shape)
    if bits.numel() != -(-count // 8):
        raise RequestError(f"bitmask of a {list(shape)} weight must have {-(-count // 8)} bytes, got {bits.numel()}")
    return _on(bits.device, _WORDS_ON)[bits.int()].view(torch.bool)[:count].reshape(shape)


def _on(device: torch.device, table: dict[torch.device, Tensor]) -> Tensor:
    """The table on this device, where it goes once: a masked linear unpacks at each forward pass."""
    if device not in table:
        with torch.inference_mode(False):  # what is made under inference mode is of no use outside it
            table[device] = table[torch.device("cpu")].to(device)
    return table[device]


def pack(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Bits and kept values of a weight."""
    return pack_bits(mask), weight.detach()[mask].contiguous()


def unpack(bits: Tensor, values: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The weight (zero where not kept) and its mask.

    Raises:
        RequestError: the number of values is not the number of bits that are set.
    """
    mask = unpack_bits(bits, shape).to(values.device)
    if int(mask.sum()) != values.numel():
        raise RequestError(f"values of a {list(shape)} weight must be {int(mask.sum())}, got {values.numel()}")
    weight = torch.zeros(shape, dtype=values.dtype, device=values.device)
    weight[mask] = values
    return weight, mask
