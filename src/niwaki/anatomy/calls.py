"""What the layers of a model are called with: from there a layer can be run, or timed, alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.anatomy.forward import running
from niwaki.anatomy.sites import layers_of, unwrap

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass that has shown what was wanted
    pass


def first_layer_call(model: nn.Module, inputs: dict[str, Tensor]) -> Call:
    """Positional and keyword arguments of the first layer when `model` is called with `inputs`; nothing more is run."""
    return layer_calls(model, inputs, only_first=True)[0]


def layer_calls(model: nn.Module, inputs: dict[str, Tensor], *, only_first: bool = False) -> list[Call]:
    """Positional and keyword arguments of every layer when `model` is called with `inputs`; no layer is run.

    The hidden states (the first positional argument) are right for the first layer alone. Layers of one kind get the
    same arguments; where there are several (sliding and full attention) each has masks and positions of its own.
    """
    layers = layers_of(model)
    several = len(set(getattr(unwrap(model).config, "layer_types", None) or ())) > 1 and not only_first
    caught: list[Call] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        if not several or len(caught) == len(layers):  # a task head can cost more than a layer
            raise _Stop

    hooks = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    try:
        with running((layer, _pass_through) for layer in layers if several):
            unwrap(model)(**inputs)
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not caught:
        raise RuntimeError("the model was run without its first layer being called")
    return caught if several else caught * len(layers)


def _pass_through(hidden: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    """What a layer runs that gives its input back."""
    return hidden
