"""How much the rows of a linear count beside each other: what an error of each output costs the model."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.observe.statistics import LinearSums

LEAST = 1e-2
"""Of the mean over the rows, what a row counts at least: on other data it may matter more."""


def row_scale(sums: LinearSums) -> Tensor:
    """By what to multiply the rows of a weight for their squared errors to compare: `sqrt(G_ii / mean G)`, `[out]`.

    G_ii is the mean square of the loss gradient at output i, as in `niwaki.sparsify.curves`.
    """
    squares = torch.as_tensor(sums.gradient_squares).float()
    mean = squares.mean()
    return (squares / mean).clamp_min(LEAST).sqrt() if bool(mean > 0) else torch.ones_like(squares)
