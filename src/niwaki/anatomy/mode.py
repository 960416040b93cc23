"""Evaluation mode, or no caches, for a while, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put `models` in evaluation mode, without caches of keys and values; all is as it was after, also on an error."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with without_caches(*models):
            yield
    finally:
        for module, training in modes:
            module.training = training


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
