"""The hidden states of all calibration batches before one layer, carried on a layer at a time.

A layer that runs several times in a row is carried through all its runs at once; what is seen of it is seen of each.

A layer can so be run, and looked into, without those before it. The hidden states wait in temporary files, so that
memory holds one batch of them however many rows there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.adapters import materialized_weights
from niwaki.anatomy import Call, layer_calls, layers_of, runs_of
from niwaki.data import token_mask
from niwaki.numerics.half import half_in_float32
from niwaki.observe.units import Batch, at_tokens

TOGETHER = 2048
"""Tokens for which a sum is worth its while; a default batch has at most twice as many."""


class _Seen(Exception):  # noqa: N818 - not an error: it ends a layer's pass that has shown what was wanted
    pass


class Stream:
    """All batches of `data` in `model`, before its first layer at the start; a context that ends with its files."""

    def __init__(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.layers: dict[int, nn.Module] = dict(enumerate(layers_of(model)))
        self.runs = runs_of(model)
        self.calls: list[list[Call]] = []
        self.keep: list[Tensor] = []
        self.folder = tempfile.TemporaryDirectory(prefix="niwaki-")
        self.device = device = next(model.parameters()).device
        for batch in data:
            inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and k != "labels"}
            calls = layer_calls(model, inputs)
            self._put(len(self.calls), calls[0][0][0])
            self.calls.append([(args[1:], kwargs) for args, kwargs in calls])
            self.keep.append(token_mask(inputs).bool())

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def _put(self, number: int, hidden: Tensor) -> None:
        torch.save(hidden.clone(), self._file(number))  # a view would bring all it is a view of

    def _file(self, number: int) -> Path:
        return Path(self.folder.name) / f"{number}.pt"

    def advance(self, index: int) -> None:
        """Carry all batches through layer `index`."""
        for _ in self.seen(index, {}, {}, advance=True):
            pass

    def seen(
        self, index: int, inputs: Mapping[str, nn.Module], outputs: Mapping[str, nn.Module], *, advance: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """For each batch, the real tokens' inputs and outputs of these modules of layer `index`, by key, run by run.

        The weights of the layer must not be changed meanwhile: adapters and masks are folded into them once.
        With `advance` the batches are carried through the layer; without, no more of it is run than is needed.
        """
        found: dict[str, list[Tensor]] = {key: [] for key in (*inputs, *outputs)}

        def note(key: str, value: Tensor) -> None:
            found[key].append(value)
            if not advance and all(len(values) == self.runs for values in found.values()):
                raise _Seen

        with ExitStack() as stack:
            stack.enter_context(materialized_weights(self.layers[index]))
            for key, module in inputs.items():

                def before(_module: nn.Module, args: tuple[Tensor, ...], key: str = key) -> None:
                    note(key, args[0])

                stack.callback(module.register_forward_pre_hook(before).remove)
            for key, module in outputs.items():

                def after(_module: nn.Module, _args: Any, output: Any, key: str = key) -> None:
                    note(key, output[0] if isinstance(output, tuple) else output)

                stack.callback(module.register_forward_hook(after).remove)
            for number, keep in enumerate(self.keep):
                for values in found.values():
                    values.clear()
                args, kwargs = self.calls[number][index]
                hidden = torch.load(self._file(number), map_location=self.device, weights_only=True)
                with suppress(_Seen), half_in_float32():
                    for _ in range(self.runs):
                        output = self.layers[index](hidden, *args, **kwargs)
                        hidden = output[0] if isinstance(output, tuple) else output
                if advance:
                    self._put(number, hidden)
                yield {key: _cat([at_tokens(x, keep) for x in values]) for key, values in found.items()}


def rebatch(parts: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The same rows in fewer pieces: dicts of tensors, joined along their first dimension to `TOGETHER` or more."""
    waiting: list[dict[str, Tensor]] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(next(iter(part.values())))
        if rows >= TOGETHER:
            yield _joined(waiting)
            waiting, rows = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: _cat([part[key] for part in parts]) for key in parts[0]}


def _cat(parts: list[Tensor]) -> Tensor:
    """The parts joined along their first dimension; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
