"""Linears without inputs, as a cut leaves them of a site that lost all its units, in a graph: their bias alone.

A matrix without rows is a constant that nothing can be divided by to round it, and that OpenVINO reads as one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from niwaki.anatomy import sites_of


@contextmanager
def empty_linears_as_biases(model: PreTrainedModel) -> Iterator[None]:
    """While open, the output projection of an empty site gives its bias for every token, and multiplies nothing."""
    linears: list[Any] = [site.output for site in sites_of(model) if not site.units]
    for linear in linears:
        bias = linear.bias if linear.bias is not None else torch.zeros(max(linear.weight.shape))

        def forward(found: Tensor, bias: Tensor = bias) -> Tensor:
            return bias.expand(*found.shape[:-1], -1)

        linear.forward = forward
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward
