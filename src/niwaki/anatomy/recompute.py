"""Gradient checkpointing: a layer keeps what it was given, and runs again when the backward pass comes to it.

Chen et al., 2016 (Training deep nets with sublinear memory cost), by `torch.utils.checkpoint`: that of Transformers
works in training mode alone, and observing, and learning from another model, are done in evaluation mode. It costs a
forward pass more, and what comes out is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from niwaki.anatomy.forward import running
from niwaki.anatomy.linears import linears_of
from niwaki.anatomy.mode import without_caches
from niwaki.anatomy.sites import layers_of, runs_of
from niwaki.numerics.half import run_again


@contextmanager
def layers_run_again(model: nn.Module) -> Iterator[None]:
    """While open, forward passes keep what goes into each layer of `model`, and make the rest again going back.

    That may be after it is closed. Dropout drops the same again. Caches of keys and values, which would be written
    twice, are off.
    """
    again = ((layer, partial(run_again, layer.forward, models=[layer])) for layer in layers_of(model))
    with running(again), without_caches(model):
        yield


def left_by_layers(model: nn.Module, tokens: int) -> int:
    """About as many bytes as all layers leave for a backward pass: what goes into and comes out of their linears."""
    features = runs_of(model) * sum(sum(linear.shape) for linear in linears_of(model))
    return features * tokens * next(model.parameters()).element_size()
