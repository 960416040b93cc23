"""Scores from the gradient of the task loss with respect to a mask on the unit.

`fisher`: sum over rows of (dL/dm)^2, m = 1 (Kwon et al., NeurIPS 2022). `taylor`: sum over rows of |dL/dm|,
which is |sum w dL/dw| over the unit's outgoing weights (Molchanov et al., 2019; Michel et al., 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.anatomy import Site
from niwaki.observe.units import Statistics


def fisher(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Mean squared mask gradient, `[units]`."""
    del seed
    return torch.as_tensor(statistics.sites[site.name].fisher) / statistics.rows


def taylor(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Mean absolute mask gradient, `[units]`."""
    del seed
    return torch.as_tensor(statistics.sites[site.name].taylor) / statistics.rows
