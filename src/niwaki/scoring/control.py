"""A score that knows nothing: what every other must beat."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from niwaki.anatomy import Site
from niwaki.observe.units import Statistics


def random(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Uniform random scores `[units]`, the same for the same site name and seed."""
    del statistics
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(site.name.encode()))
    return torch.rand(site.units, generator=generator)
