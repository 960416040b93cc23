"""A training that fails, or is interrupted, leaves the model as it came in: nothing attached, nothing half-trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from peft import PeftModel
from torch import nn

from niwaki.adapters import to_train_

Trained = TypeVar("Trained", bound=nn.Module)


@contextmanager
def adapters_in_training_(model: nn.Module, rank: int, *, seed: int) -> Iterator[PeftModel]:
    """The `PeftModel` to train (see `to_train_`); if the body raises, `model` is put back as it came in."""
    with _put_back_on_failure_(model, lambda: to_train_(model, rank, seed=seed)) as tuned:
        yield tuned


@contextmanager
def weights_in_training_(
    model: nn.Module, to_train_: Callable[[nn.Module], nn.Module] = lambda model: model.requires_grad_(True)
) -> Iterator[nn.Module]:
    """`model`, whose parameters are trained: all, or those that `to_train_` lets require gradients.

    If the body raises, it is put back as it came in.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with _put_back_on_failure_(model, lambda: to_train_(model)) as tuned:
        yield tuned
    for parameter, needed in required:
        parameter.requires_grad_(needed)


@contextmanager
def _put_back_on_failure_(model: nn.Module, prepare: Callable[[], Trained]) -> Iterator[Trained]:
    """What `prepare` makes of `model` to train; if that or the body raises, the model is put back.

    Put back are its modules and their types, so that new LoRA and masks are gone; values and gradients of what is
    trained; hooks, buffers, modes and which parameters require gradients.
    """
    parts = [_Part(module) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    values = []
    try:
        tuned = prepare()
        values = [(p, p.detach().clone()) for p, _ in required if p.requires_grad]
        yield tuned
    except BaseException:
        for part in parts:
            part.put_back_()
        for parameter, value in values:
            parameter.data.copy_(value)
        for parameter, needed in required:
            parameter.requires_grad_(needed)
        raise


class _Part:
    """What a module is and holds, one level deep; its containers are put back in place, as others hold them too."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.held = {key: (value, self._copied(value)) for key, value in vars(module).items()}

    @staticmethod
    def _copied(value: Any) -> Any:
        return copy.copy(value) if isinstance(value, dict | set) else value

    def put_back_(self) -> None:
        self.module.__class__ = self.kind
        vars(self.module).clear()
        for key, (value, then) in self.held.items():
            if isinstance(value, dict | set):
                value.clear()
                value.update(then)
            vars(self.module)[key] = value
