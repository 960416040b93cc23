"""What a module runs when it is called: something else for a while, or what another class does from now on.

A module may have a `forward` of its own beside that of its class: where Accelerate placed a model it moves inputs to
the module's device and then runs `_old_forward`, the method that was there before. Neither may be lost, nor go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

from torch import nn


@contextmanager
def running(instead: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """While open, each of these modules runs what stands beside it; afterwards what it ran before."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in instead:
            before.append((module, vars(module).get("forward")))
            cast(Any, module).forward = forward
        yield
    finally:
        for module, own in before:
            del module.forward
            if own is not None:
                cast(Any, module).forward = own


def become_(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make `module` one of the class `kind` in place, also in what Accelerate calls once it has moved the inputs."""
    cast(Any, module).__class__ = kind
    if "_old_forward" in vars(module):
        cast(Any, module)._old_forward = MethodType(kind.forward, module)
