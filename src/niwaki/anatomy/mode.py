"""Evaluation mode, the precision that weights are held in, or no caches, for a while, without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from niwaki.anatomy.forward import running


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put `models` in evaluation mode, without caches of keys and values; all is as it was after, also on an error.

    They compute in the precision that they are held in (see `as_held`), and as they are written: what `compile` made of
    a module would not call the hooks that look at it.
    """
    modes = [(module, module.training, module._compiled_call_impl) for model in models for module in model.modules()]
    try:
        for module, _, _ in modes:
            module.training, module._compiled_call_impl = False, None
        with without_caches(*models), _problems_held(*models), as_held(*models):
            yield
    finally:
        for module, training, compiled in modes:
            module.training, module._compiled_call_impl = training, compiled


@contextmanager
def _problems_held(*models: nn.Module) -> Iterator[None]:
    """Leave in the configs what labels are said to be: a model that takes a loss for the first time notes it there."""
    configs = _configs(*models)
    problems = [getattr(config, "problem_type", None) for config in configs]
    try:
        yield
    finally:
        for config, problem in zip(configs, problems, strict=True):
            if getattr(config, "problem_type", None) != problem:
                config.problem_type = problem


def _configs(*models: nn.Module) -> list[Any]:
    """The configurations of all parts that have one."""
    parts = [module for model in models for module in model.modules() if isinstance(module, PreTrainedModel)]
    return [part.config for part in parts]


@contextmanager
def as_held(*models: nn.Module) -> Iterator[None]:
    """Let `models` compute in the precision that they are held in, whatever autocast is open around or inside them.

    Inside is the one of a model that Accelerate has prepared for mixed precision, and a Trainer leaves so.
    """
    parts = (module for model in models if isinstance(model, nn.Module) for module in model.modules())
    prepared = [(module, _unprepared(module)) for module in parts]  # what is no model is refused by who knows of them
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(running((module, forward) for module, forward in prepared if forward is not None))
        yield


def _unprepared(module: nn.Module) -> Callable[..., Any] | None:
    """What a module ran before `Accelerator.prepare` put autocast around it, once or several times; None where not."""
    forward = vars(module).get("forward")
    inside: Any = forward
    # Around what was there is an autocast, around that what makes float32 of the outputs, around that a function.
    while type(getattr(inside, "__wrapped__", None)).__name__ == "ConvertOutputsToFp32":
        inside = inside.__wrapped__.__wrapped__.__wrapped__
    if inside is forward:
        return None
    return MethodType(inside, module) if isinstance(forward, MethodType) else inside


@contextmanager
def without_caches(*models: nn.Module) -> Iterator[None]:
    """Let `models` keep no keys and values; their configurations are as they were after."""
    caches = [(config, config.use_cache) for config in _configs(*models) if getattr(config, "use_cache", False)]
    try:
        for config, _ in caches:
            config.use_cache = False
        yield
    finally:
        for config, use_cache in caches:
            config.use_cache = use_cache
