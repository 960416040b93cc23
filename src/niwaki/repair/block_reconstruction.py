"""Layers that learn: once its linears are fitted, a layer is trained to give what the dense model's layer gives.

Least squares fit a linear as if nothing followed; across the softmax and the activation only gradients see. So the
layer runs on the pruned model's own hidden states, and AdamW lowers the squared error of what it gives against the
dense model's hidden states after the layer, over real tokens: block reconstruction, its errors weighted by the diagonal
of the Fisher information as in BRECQ (Li et al., ICLR 2021), here that of a token times that of a dimension. `kept`
trains whatever the masks leave of the layer ("A Free Lunch in LLM Compression", 2025); `norms` its norms and biases
alone (PERP, Zimmer et al., 2023). No labels; one layer and one batch at a time.

Several processes share the rows of each batch that is learned from, and the batches that are measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import get_linear_schedule_with_warmup

from niwaki.anatomy import BlockLinear
from niwaki.config import LayerAdaptive, Structured
from niwaki.data import token_mask
from niwaki.errors import WorkError
from niwaki.numerics.half import half_in_float32
from niwaki.observe import Passes, Statistics, TokenWeights
from niwaki.observe.stream import Stream
from niwaki.processes import add_up_each, count, from_one, known_to_all, number, shared_out
from niwaki.repair.given import Given
from niwaki.repair.sequential_least_squares import After, AfterLayer

EPOCHS = 1
STEP, LARGEST, SMALLEST = 1 / 8, 3e-2, 1e-2
"""Peak learning rate of a tensor as a share of the root of its mean square, by about which AdamW moves each weight: so
much of what the layer is wrong by, relative to what it is to give, or the `LARGEST`; and the root below which a tensor
(biases that are zero) learns no slower."""
FAINT = 1e-2
"""Gradients below this share of the root of their tensor's mean square move a weight less: AdamW would make a whole
step of what rounding leaves of a gradient."""
HELD_OUT = 8
"""One batch of so many is not learned from: where the layer is no better there after training, it stays as it was."""

Values = dict[str, Tensor]
"""Parameters of a layer by name, in float32 at least: training in half precision would round small steps to nothing."""


def learns(config: Structured | LayerAdaptive, batches: int) -> str:
    """What learns of a layer: as asked, or by `auto` all that is left where it is refitted and batches can be held out.

    Not where a layer is to be looked at once.
    """
    if config.reconstruct != "auto":
        return config.reconstruct
    fitted = config.repair == "least-squares" and not getattr(config, "fast", False)
    return "kept" if fitted and batches >= HELD_OUT else "none"


def reconstruction(which: str, statistics: Statistics, weights: TokenWeights | None, seed: int) -> AfterLayer | None:
    """What is to be done after each layer of a refit: `learned_of_block`, or nothing for `which` none."""
    if which == "none":
        return None
    return partial(learned_of_block, which=which, statistics=statistics, weights=weights, seed=seed)


def reconstruction_passes(which: str, batches: int) -> Passes:
    """What it costs of so many batches: its epochs, and the error before and after on those that are held out."""
    if which == "none":
        return Passes()
    learned, held = _parts(batches)
    trained, measured = EPOCHS * len(learned) / batches, 2 * len(held) / batches
    return Passes(trained + measured, trained)


def _parts(batches: int) -> tuple[list[int], list[int]]:
    """Numbers of the batches that are learned from, and of those that are held out: all are both where they are few."""
    numbers = list(range(batches))
    held = numbers[::HELD_OUT] if batches >= HELD_OUT else numbers
    return [number for number in numbers if number not in held] or numbers, held


@torch.no_grad()
def learned_of_block(
    linears: Sequence[BlockLinear],
    pruned: Stream,
    wanted: After,
    *,
    which: str,
    statistics: Statistics,
    weights: TokenWeights | None,
    seed: int,
) -> Values:
    """What the parameters of the layer of `linears` learn, by name, before which `pruned` stands; `which` as above.

    They are to give `wanted`; they stay as they are. Nothing where it is no better for it. `weights` and the squared
    output gradients of `statistics` (those of the linear that writes last) say how much each token and each dimension
    matters; alike where they are not there. Masks are held, adapters are not trained.

    Raises:
        WorkError: an error that is not finite; names the layer.
    """
    layer, last = pruned.layers[linears[0].layer], linears[-1].name
    block = _Block(
        linears[0].layer,
        last,
        pruned,
        wanted,
        _trained(layer, linears, which),
        _by_dimension(statistics, last),
        weights,
    )
    learned, held = _parts(len(block.holders))
    if not block.stored:
        return {}
    with half_in_float32(layer):
        values = {name: _exact(parameter.detach()).clone() for name, parameter in block.stored.items()}
        before = block.total(held, lambda given: float(block.error(given, values)))
        size = max(block.total(learned, block.size) / len(learned), torch.finfo(torch.float32).tiny)
        rate = min(STEP * math.sqrt(before / len(held) / size), LARGEST)
        _train(block, values, learned, size, rate, seed)
        after = block.total(held, lambda given: float(block.error(given, values)))
    return {name: value.detach() for name, value in values.items()} if after < before else {}


@dataclass(frozen=True, eq=False)
class _Block:
    """Layer `index` of the pruned model and what is `wanted` of it.

    `last` names the linear that writes last, `stored` holds the parameters that learn by their name in the layer, and
    `by_dimension` `[width]` says how much each dimension matters.
    """

    index: int
    last: str
    pruned: Stream
    wanted: After
    stored: dict[str, nn.Parameter]
    by_dimension: Tensor | None
    weights: TokenWeights | None

    @cached_property
    def holders(self) -> dict[int, tuple[int, int]]:
        """Number of a batch among all -> the process that holds it, and its number there."""
        told = shared_out(range(count()), lambda _: {"numbers": self.pruned.numbers})
        return {n: (holder, place) for holder, part in enumerate(told) for place, n in enumerate(part["numbers"])}

    def total(self, numbers: Sequence[int], measure: Callable[[Given], float]) -> float:
        """The sum of what is measured of each of these batches, by the process that holds it."""
        places = {n: place for n, (holder, place) in self.holders.items() if n in numbers and holder == number()}
        found = known_to_all({str(n): measure(self.given(place)) for n, place in places.items()})
        return sum(found[str(n)] for n in numbers)

    def given(self, place: int) -> Given:
        """A batch that is held here, with what the layer is to give for it and what each token counts."""
        inputs, by_token = self.pruned.inputs(place), None
        # A layer that runs several times has weights for the tokens of each run; one that has no units left has none.
        if self.weights is not None and self.last in self.weights[place]:
            keep = token_mask(inputs).bool()
            known = self.weights[place][self.last].reshape(self.pruned.runs, -1)[-1]
            by_token = known.new_zeros(keep.shape).masked_scatter(keep, known)
        return Given(inputs, self.pruned.hidden(place), self.wanted(place), by_token)

    def own_rows(self, n: int) -> Given | None:
        """The rows of batch `n` that this process learns from, all when it is alone; None without any."""
        holder, place = self.holders[n]
        given = Given.of(from_one(holder, lambda: self.given(place).parts()))
        return given if count() == 1 else given.rows(slice(number(), None, count()))

    def error(self, given: Given, values: Values) -> Tensor:
        """The weighted squared error of what the layer gives for a batch with these values."""
        turn, layer = self.pruned.turn_of(self.index, given.inputs, given.hidden), self.pruned.layers[self.index]
        rounded = {name: value.to(self.stored[name].dtype) for name, value in values.items()}
        found = turn.through(lambda *args, **kwargs: functional_call(layer, rounded, args, kwargs))
        return self._weighted((_exact(found[turn.keep]) - _exact(given.wanted[turn.keep])).square(), given)

    def size(self, given: Given) -> float:
        """The weighted square of what the layer is to give for a batch."""
        return float(self._weighted(_exact(given.wanted[token_mask(given.inputs).bool()]).square(), given))

    def _weighted(self, squares: Tensor, given: Given) -> Tensor:
        by_dimension = torch.ones_like(squares[0]) if self.by_dimension is None else self.by_dimension.to(squares)
        by_token = torch.ones_like(squares[:, 0])
        if given.by_token is not None:
            by_token = given.by_token[token_mask(given.inputs).bool()].to(squares)
        return squares @ by_dimension @ by_token


def _by_dimension(statistics: Statistics, last: str) -> Tensor | None:
    """How much each output of the linear that writes last matters, 1 in the mean; None where nothing was seen of it."""
    if last not in statistics.linears:  # it has no units left
        return None
    squares = torch.as_tensor(statistics.linears[last].gradient_squares).float()
    return squares / squares.mean() if squares.any() else None


def _trained(layer: nn.Module, linears: Sequence[BlockLinear], which: str) -> dict[str, nn.Parameter]:
    """The parameters that learn, by their name in the layer: norms and biases; with `kept` the linears' weights too."""
    matrices = {id(getattr(linear.module, "base_layer", linear.module).weight) for linear in linears}
    return {
        name: parameter
        for name, parameter in layer.named_parameters()
        if "lora_" not in name
        and parameter.numel()
        and (parameter.dim() == 1 or (which == "kept" and id(parameter) in matrices))
    }


def _train(block: _Block, values: Values, batches: list[int], size: float, rate: float, seed: int) -> None:
    """Train `values` in place on these batches, whose errors are divided by `size`, at a `rate` relative to theirs."""
    sizes = {name: max(float(value.square().mean().sqrt()), SMALLEST) for name, value in values.items()}
    optimizer = torch.optim.AdamW(
        [{"params": [value.requires_grad_()], "lr": rate * sizes[name]} for name, value in values.items()],
        weight_decay=0.0,
    )
    steps, draw = EPOCHS * len(batches), random.Random(seed)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(EPOCHS):
        for batch in draw.sample(batches, len(batches)):
            found = _gradients(block, values, batch, size)
            for value, gradient, group in zip(values.values(), found, optimizer.param_groups, strict=True):
                value.grad = gradient
                if gradient is not None and value not in optimizer.state:
                    group["eps"] = max(FAINT * float(gradient.square().mean().sqrt()), group["eps"])
            optimizer.step()
            schedule.step()


def _gradients(block: _Block, values: Values, batch: int, size: float) -> list[Tensor | None]:
    """Those of the error of a batch over `size` with respect to `values`, from the rows of all processes.

    None of what is no part of the error.
    """
    given = block.own_rows(batch)
    found: list[Tensor | None] = [None] * len(values)
    if given is not None:
        with torch.enable_grad():
            loss = block.error(given, values) / size
        if not bool(torch.isfinite(loss)):
            raise WorkError(f"layer.{block.index}: the error of what it gives is not finite")
        # Not `backward`: adapters that the layer holds would gather gradients too.
        found = [*torch.autograd.grad(loss, list(values.values()), allow_unused=True)]
    if count() == 1:
        return found
    own = [torch.zeros_like(v) if g is None else g for v, g in zip(values.values(), found, strict=True)]
    return list(add_up_each(own))


def _exact(values: Tensor) -> Tensor:
    """The same in single precision, or in more where it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
