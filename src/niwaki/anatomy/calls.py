"""What the first layer of a model is called with: from there a layer can be run, or timed, alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.anatomy.sites import layers_of, unwrap

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass that has shown what was wanted
    pass


def first_layer_call(model: nn.Module, inputs: dict[str, Tensor]) -> Call:
    """Positional and keyword arguments of the first layer when `model` is called with `inputs`; nothing more is run."""
    caught: list[Call] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Stop

    hook = layers_of(model)[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        unwrap(model)(**inputs)
    except _Stop:
        return caught[0]
    finally:
        hook.remove()
    raise RuntimeError("the model was run without its first layer being called")
