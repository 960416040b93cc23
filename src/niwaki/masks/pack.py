"""A masked tensor in a compact form: one bit a weight, and the values that are kept, in row-major order.

A float32 tensor with a share s of zeros takes 1/32 + (1 - s) of its dense size. The mask is stored, not guessed from
the values: a kept weight that happens to be 0.0 stays kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from niwaki.errors import RequestError


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 `[ceil(n / 8)]`, the mask's bits in row-major order, the first in the highest bit."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().astype(bool).reshape(-1)))


def unpack_bits(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of `shape` that `pack_bits` packed.

    Raises:
        RequestError: too few or too many bits for the shape.
    """
    count = int(np.prod(shape))
    if bits.numel() != -(-count // 8):
        raise RequestError(f"bitmask of a {list(shape)} weight must have {-(-count // 8)} bytes, got {bits.numel()}")
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).reshape(shape)


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
