"""The seed's head score: how much a head's attention distribution varies, over keys and over inputs.

The two variances of `niwaki.observe.attention` are added: a head is redundant only if it neither prefers some keys nor
changes its preference with the query. Their sum is in [0, 2], free of scale, and needs no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.anatomy import Site
from niwaki.observe.units import Statistics


def attention_variance(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Mean variance over keys plus mean variance over inputs, `[heads]`."""
    del seed
    sums = torch.as_tensor(statistics.sites[site.name].attention)
    return (sums[:, 0] + sums[:, 1]) / sums[:, 2]
