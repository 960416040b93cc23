"""Linears without inputs, as a cut leaves them of a site that lost all its units, in a graph: their bias alone.

A matrix without rows is a constant that nothing can be divided by to round it, and that OpenVINO reads as one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from niwaki.anatomy import running, sites_of


@contextmanager
def empty_linears_as_biases(model: PreTrainedModel) -> Iterator[None]:
    """While open, the output projection of an empty site gives its bias for every token, and multiplies nothing."""
    linears: list[Any] = [site.output for site in sites_of(model) if not site.units]
    biases = ((x, x.bias if x.bias is not None else torch.zeros(max(x.weight.shape))) for x in linears)
    with running((linear, partial(_expanded, bias)) for linear, bias in biases):
        yield


def _expanded(bias: Tensor, found: Tensor) -> Tensor:
    """A bias for every token of what a linear is given."""
    return bias.expand(*found.shape[:-1], -1)
