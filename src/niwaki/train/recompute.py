"""Gradient checkpointing: a layer keeps what it was given, and runs again when the backward pass comes to it.

Chen et al., 2016 (Training deep nets with sublinear memory cost), by `torch.utils.checkpoint`. That of Transformers
works in training mode alone; a model that learns from another one is trained in evaluation mode, without dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from niwaki.anatomy import layers_of, without_caches


@contextmanager
def layers_run_again(model: nn.Module) -> Iterator[None]:
    """While open, the layers of `model` run again in the backward pass; it is as it was after, also on an error.

    Dropout drops the same again. Caches of keys and values, which would be written twice, are off.
    """
    layers = [layer for layer in layers_of(model) if "forward" not in vars(layer)]
    with without_caches(model):
        try:
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
            yield
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)
