"""Contribution of units from activation statistics and the size of the outgoing weights.

`activation` is the seed's: `E[x_j^2]^(1/2) * ||W_:,j||_2`, the size of what the neuron adds to the output.
`activation-variance` is FLAP's: `var(x_j) * ||W_:,j||_2^2`, what is lost once its mean is moved into the bias
(An et al., "Fluctuation-based adaptive structured pruning", AAAI 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.adapters import effective_weight
from niwaki.anatomy import Site
from niwaki.observe.units import Statistics


def activation(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Root mean square of the activation times the norm of the outgoing weights, `[units]`."""
    del seed
    squares = torch.as_tensor(statistics.sites[site.name].squares) / statistics.tokens
    per_column = squares.sqrt() * effective_weight(site.output).norm(dim=0)
    return per_column.reshape(site.units, site.width).sum(1)


def activation_variance(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Variance of the activation times the squared norm of the outgoing weights, `[units]`."""
    del seed
    sums = statistics.sites[site.name]
    mean = torch.as_tensor(sums.inputs) / statistics.tokens
    variance = (torch.as_tensor(sums.squares) / statistics.tokens - mean.square()).clamp_min(0)
    per_column = variance * effective_weight(site.output).square().sum(0)
    return per_column.reshape(site.units, site.width).sum(1)
