"""Evaluation mode, or no caches, for a while, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put `models` in evaluation mode, without caches of keys and values; all is as it was after, also on an error.

    They compute in the precision that they are held in, whatever autocast the caller has open, and as they are written:
    what `compile` made of a module would not call the hooks that look at it.
    """
    modes = [(module, module.training, module._compiled_call_impl) for model in models for module in model.modules()]
    try:
        for module, _, _ in modes:
            module.training, module._compiled_call_impl = False, None
        with without_caches(*models), _without_autocast():
            yield
    finally:
        for module, training, compiled in modes:
            module.training, module._compiled_call_impl = training, compiled


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def without_caches(*models: nn.Module) -> Iterator[None]:
    """Let `models` keep no keys and values; their configurations are as they were after."""
    parts = [module for model in models for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs = [cast(Any, part.config) for part in parts]
    caches = [(config, config.use_cache) for config in configs if getattr(config, "use_cache", False)]
    try:
        for config, _ in caches:
            config.use_cache = False
        yield
    finally:
        for config, use_cache in caches:
            config.use_cache = use_cache
