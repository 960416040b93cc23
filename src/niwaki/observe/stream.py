"""The hidden states of all calibration batches before one layer, carried on a layer at a time.

A layer that runs several times in a row is carried through all its runs at once; what is seen of it is seen of each.

A layer can so be run, and looked into, without those before it. The batches and their hidden states wait in temporary
files, so that memory holds one of them however many rows there are. The masks and positions that a layer is called with
are larger than the tokens: they are made anew whenever a batch's turn comes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn

from niwaki.adapters import materialized_weights
from niwaki.anatomy import first_layer_call, layer_calls, layers_of, runs_of
from niwaki.data import token_mask, without_labels
from niwaki.numerics.gram import joined
from niwaki.numerics.half import half_in_float32
from niwaki.observe.shares import multiplied_together, shared
from niwaki.observe.statistics import Batch, at_tokens


class _Seen(Exception):  # noqa: N818 - not an error: it ends a layer's pass that has shown what was wanted
    pass


@dataclass(frozen=True, eq=False)
class Turn:
    """A batch before a layer: its hidden states, the other arguments of the layer, and its real tokens.

    `keep` is `[batch, tokens]`, True at real tokens; `runs` is how often the layer runs in a row.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keep: Tensor
    runs: int

    def through(self, layer: Callable[..., Any]) -> Tensor:
        """The hidden states after all runs of `layer`."""
        hidden = self.hidden
        for _ in range(self.runs):
            output = layer(hidden, *self.args, **self.kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


class Stream:
    """The batches of `data` in `model`, before its first layer at the start; a context that ends with its files.

    Of several processes each has its share of them, in the order in which `observe` sees them.

    No tensor of a batch is held between two calls.
    """

    def __init__(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.model = model
        self.layers: dict[int, nn.Module] = dict(enumerate(layers_of(model)))
        self.runs = runs_of(model)
        self.numbers: list[int] = []
        """Of the batches here, the number of each among those of all processes."""
        self.folder = tempfile.TemporaryDirectory(prefix="niwaki-")
        self.device = next(model.parameters()).device
        batches = list(data)
        self.together = multiplied_together(batches)
        """Tokens at least of what is multiplied at once."""
        for number, (among_all, batch) in enumerate(shared(batches)):
            inputs = {k: v.to(self.device) for k, v in without_labels(batch).items() if isinstance(v, Tensor)}
            self._put("inputs", number, inputs)
            self._put("hidden", number, {"hidden": first_layer_call(model, inputs)[0][0]})
            self.numbers.append(among_all)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def _put(self, what: str, number: int, tensors: dict[str, Tensor]) -> None:
        self._file(what, number).write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _get(self, what: str, number: int) -> dict[str, Tensor]:
        # Read whole: a file that is mapped into memory would change under the tensors when it is written anew.
        found = load(self._file(what, number).read_bytes())
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def _file(self, what: str, number: int) -> Path:
        return Path(self.folder.name) / f"{what}-{number}"

    def advance(self, index: int) -> None:
        """Carry all batches through layer `index`."""
        for _ in self.seen(index, {}, {}, advance=True):
            pass

    def seen(
        self, index: int, inputs: Mapping[str, nn.Module], outputs: Mapping[str, nn.Module], advance: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """For each batch, the real tokens' inputs and outputs of these modules of layer `index`, by key, run by run.

        The weights of the layer must not be changed meanwhile: adapters and masks are folded into them once.
        With `advance` the batches are carried through the layer; without, no more of it is run than is needed.
        """
        layer = self.layers[index]
        found: dict[str, list[Tensor]] = {key: [] for key in (*inputs, *outputs)}

        def note(key: str, value: Tensor) -> None:
            found[key].append(value)
            if not advance and all(len(values) == self.runs for values in found.values()):
                raise _Seen

        with materialized_weights(layer):
            for number in range(len(self.numbers)):
                turn = self.turn(index, number)
                hidden = turn.hidden
                with suppress(_Seen), _noted(inputs, outputs, note), half_in_float32(layer):
                    hidden = turn.through(layer)
                if advance:
                    self._put("hidden", number, {"hidden": hidden})
                yield {key: joined([at_tokens(x, turn.keep) for x in values]) for key, values in found.items()}
                for values in found.values():
                    values.clear()

    def turn(self, index: int, number: int) -> Turn:
        """What layer `index` is called with when batch `number` of those here has its turn."""
        return self.turn_of(index, self.inputs(number), self.hidden(number))

    def turn_of(self, index: int, inputs: Batch, hidden: Tensor) -> Turn:
        """The same of any `inputs` of the model, or rows of them, that stand before the layer as `hidden` states."""
        (_, *args), kwargs = layer_calls(self.model, inputs)[index]
        return Turn(hidden, tuple(args), kwargs, token_mask(inputs).bool(), self.runs)

    def inputs(self, number: int) -> Batch:
        """A batch as the model takes it."""
        return self._get("inputs", number)

    def hidden(self, number: int) -> Tensor:
        """The hidden states `[batch, tokens, width]` of a batch where it stands."""
        return self._get("hidden", number)["hidden"]


@contextmanager
def _noted(
    inputs: Mapping[str, nn.Module], outputs: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """While open, `note` is given the inputs and outputs of these modules, by key, as they are run."""

    def before(key: str) -> Callable[..., None]:
        return lambda _module, args: note(key, args[0])

    def after(key: str) -> Callable[..., None]:
        return lambda _module, _args, output: note(key, output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_pre_hook(before(key)) for key, module in inputs.items()]
    hooks += [module.register_forward_hook(after(key)) for key, module in outputs.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
