"""What a mask is: its pattern, the exact choice of what it keeps, holding it through training, packing it."""

from niwaki.config.patterns import Block, NByM, Pattern, Unstructured, parse_pattern
from niwaki.masks.choose import check_divides, choose, lowest
from niwaki.masks.hold import MaskedLinear, mask_linear_, unmask_linear_
from niwaki.masks.pack import pack, pack_bits, unpack, unpack_bits

__all__ = [
    "Block",
    "MaskedLinear",
    "NByM",
    "Pattern",
    "Unstructured",
    "check_divides",
    "choose",
    "lowest",
    "mask_linear_",
    "pack",
    "pack_bits",
    "parse_pattern",
    "unmask_linear_",
    "unpack",
    "unpack_bits",
]
