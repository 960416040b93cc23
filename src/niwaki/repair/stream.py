"""The hidden states of all calibration batches before one layer, carried on a layer at a time.

A layer can so be run, and looked into, without those before it. Memory is rows x length x width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from niwaki.anatomy import Call, first_layer_call, layers_of
from niwaki.data import token_mask
from niwaki.observe import Batch


class _Seen(Exception):  # noqa: N818 - not an error: it ends a layer's pass that has shown what was wanted
    pass


class Stream:
    """All batches of `data` in `model`, before its first layer at the start."""

    def __init__(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.layers = layers_of(model)
        self.calls: list[Call] = []
        self.keep: list[Tensor] = []
        device = next(model.parameters()).device
        for batch in data:
            inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and k != "labels"}
            self.calls.append(first_layer_call(model, inputs))
            self.keep.append(token_mask(inputs).bool())

    def advance(self, index: int) -> None:
        """Carry all batches through layer `index`."""
        for _ in self.seen(index, {}, {}, advance=True):
            pass

    def seen(
        self, index: int, inputs: Mapping[str, nn.Module], outputs: Mapping[str, nn.Module], *, advance: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """For each batch, the real tokens' inputs and outputs of these modules of layer `index`, by key.

        With `advance` the batches are carried through the layer; without, no more of it is run than is needed.
        """
        found: dict[str, Tensor] = {}

        def note(key: str, value: Tensor) -> None:
            found[key] = value
            if not advance and len(found) == len(inputs) + len(outputs):
                raise _Seen

        with ExitStack() as stack:
            for key, module in inputs.items():

                def before(_module: nn.Module, args: tuple[Tensor, ...], key: str = key) -> None:
                    note(key, args[0])

                stack.callback(module.register_forward_pre_hook(before).remove)
            for key, module in outputs.items():

                def after(_module: nn.Module, _args: Any, output: Tensor, key: str = key) -> None:
                    note(key, output)

                stack.callback(module.register_forward_hook(after).remove)
            for number, keep in enumerate(self.keep):
                found.clear()
                args, kwargs = self.calls[number]
                try:
                    output = self.layers[index](*args, **kwargs)
                except _Seen:
                    pass
                else:
                    if advance:
                        hidden = output[0] if isinstance(output, tuple) else output
                        self.calls[number] = ((hidden, *args[1:]), kwargs)
                yield {key: value[keep] for key, value in found.items()}
