"""What a model says of a batch, to be had a part at a time.

Over a vocabulary the logits of a batch are larger than all else that is made of it. The head of a language model sees
each token alone, so its body is run once, and its head on some of the last hidden states at a time: the logits of a
part can be forgotten before those of the next are made. What other models say is there at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.anatomy.families import family_of
from niwaki.anatomy.forward import running
from niwaki.anatomy.predictions import Predictions
from niwaki.anatomy.sites import body_of, unwrap
from niwaki.anatomy.task import is_language_model, predictions_of
from niwaki.data import without_labels

AT_ONCE, FEWEST = 2**22, 64
"""Logits of a part, 16 MiB in float32; and tokens at the least: for fewer, reading the head's weights takes longest."""
_ROWS = 512
"""Predictions of a part where a model is no language model."""

Part = Callable[[], Predictions]
"""Some of the predictions of a batch, made when they are asked for."""


class Said:
    """What `model` says of `inputs`; `asked` is asked of its forward pass beside them.

    `outputs` are those of the model, but that a language model gives no loss, and logits of one token a row alone.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Any], **asked: Any) -> None:
        self._model = model
        given = without_labels(inputs) if is_language_model(model) else inputs
        with _trunk_seen(model) as found:
            self.outputs: Any = model(**given, **asked)
        self._trunk_gave = found[0] if found else None  # of a model that runs in another engine nothing is seen
        self._states: Tensor | None = found[0].last_hidden_state if found else None

    def parts(self, where: Tensor) -> list[Part]:
        """The predictions one after the other; of tokens or of words, where `where` `[sequences, length]` is True."""
        if self._states is None:
            found = predictions_of(self._model, self.outputs, where)
            return [lambda part=part: part for part in found.parts(self.size)]
        return [lambda states=states: self._of(states) for states in self._states[where].split(self.size)]

    def backward(
        self, where: Tensor, loss_of: Callable[[Predictions, slice], Tensor], retain_graph: bool = False
    ) -> None:
        """Run the sum of the `loss_of` all parts backward; which of the predictions they are is its second argument.

        No weight gets a gradient from more than one part at a time.
        """
        if self._states is None:
            found = predictions_of(self._model, self.outputs, where)
            loss_of(found, slice(0, len(found.values))).backward(retain_graph=retain_graph)
            return
        states = self._states[where]
        gradient = torch.zeros_like(states)
        for start in range(0, len(states), self.size):
            place = slice(start, start + self.size)
            some = states[place].detach().requires_grad_()
            loss_of(self._of(some), place).backward()
            gradient[place] = cast(Tensor, some.grad)
        states.backward(gradient, retain_graph=retain_graph)

    @property
    def size(self) -> int:
        """How many predictions a part is of, but for the last."""
        if not is_language_model(self._model):
            return _ROWS
        return max(FEWEST, AT_ONCE // self.outputs.logits.shape[-1])

    def _of(self, states: Tensor) -> Predictions:
        """What the head makes of last hidden states `[n, width]`: all of the model but what its trunk would run."""
        trunk = _trunk(self._model)
        given: Any = copy.copy(self._trunk_gave)
        given.last_hidden_state = states[None]
        with running([(trunk, lambda *_args, **_kwargs: given)]):
            return Predictions("class", unwrap(self._model)(inputs_embeds=states[None]).logits[0])


def _trunk(model: nn.Module) -> nn.Module:
    """The module that runs the layers, and gives the last hidden states."""
    return body_of(model).get_submodule(family_of(unwrap(model)).layers.rpartition(".")[0])


@contextmanager
def _trunk_seen(model: nn.Module) -> Iterator[list[Any]]:
    """While open, what the trunk of a language model gives is left here, and the head gets the first token of each row.

    Of other models nothing is seen.
    """
    found: list[Any] = []
    if not is_language_model(model):
        yield found
        return

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append(copy.copy(output))
        output.last_hidden_state = output.last_hidden_state[:, :1]

    hook = _trunk(model).register_forward_hook(leave)
    try:
        yield found
    finally:
        hook.remove()
