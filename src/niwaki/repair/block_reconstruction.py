"""Layers that learn: once its linears are fitted, a layer is trained to give what the dense model's layer gives.

Least squares fit a linear as if nothing followed; across the softmax and the activation only gradients see. So the
layer runs on the pruned model's own hidden states, and AdamW lowers the squared error of what it gives against the
dense model's hidden states after the layer, over real tokens: block reconstruction, its errors weighted by the diagonal
of the Fisher information as in BRECQ (Li et al., ICLR 2021), here that of a dimension times the token's weight. `kept`
trains whatever the masks leave of the layer ("A Free Lunch in LLM Compression", 2025); `norms` its norms and biases
alone (PERP, Zimmer et al., 2023). No labels; one layer and one batch at a time.

A step is the sum of two gradients, each of rows that one of two processes holds: so two processes have half of the work
each, and send gradients alone. However many there are, they learn the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, zip_longest

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import get_linear_schedule_with_warmup

from niwaki.anatomy import BlockLinear
from niwaki.config import LayerAdaptive, Structured
from niwaki.data import token_mask
from niwaki.errors import WorkError
from niwaki.numerics.half import half_in_float32
from niwaki.observe import Batch, Passes, Statistics, TokenWeights
from niwaki.observe.shares import holders_of
from niwaki.observe.stream import Stream
from niwaki.processes import add_up_each, count, known_to_all, number, shared_out
from niwaki.repair.given import Given
from niwaki.repair.sequential_least_squares import After, AfterLayer

STEPS, MOST = 160, 6
"""About how many steps a layer learns in: few pieces are learned from again, at most so often."""
STEP, LARGEST, SMALLEST = 1 / 16, 3e-2, 1e-2
"""Peak learning rate of a tensor as a share of the root of its mean square, by about which AdamW moves each weight: so
much of what the layer is wrong by, relative to what it is to give, or the `LARGEST`; and the root below which a tensor
(biases that are zero) learns no slower."""
FAINT = 1e-2
"""Gradients below this share of the root of their tensor's mean square move a weight less: AdamW would make a whole
step of what rounding leaves of a gradient."""
PARTS = 2
"""Of so many pieces a step is made, however many processes share them: a gradient is rounded by what is multiplied at
once, and masks of later layers hang on the last bits. The sum of two is the same whoever adds them."""
TOKENS = 512
"""About what a step learns from; whole rows, one of each part at least."""
LOOKED = 8
"""At one piece of so many the error is measured: a layer that is no better there stays as it was. None is held out:
all of them were fitted by least squares before, so on such as are not learned from a layer seems to lose what it gains
on data that nobody has seen."""

Piece = tuple[int, slice]
"""Number of a batch among all, and rows of it."""

Queues = list[list[Piece]]
"""The pieces of the batches that each of `PARTS` processes would hold; a step takes one of each."""

Values = dict[str, Tensor]
"""Parameters of a layer by name, in float32 at least: training in half precision would round small steps to nothing."""


def learns(config: Structured | LayerAdaptive, data: Sequence[Batch]) -> str:
    """What learns of a layer: as asked, or by `auto` all that is left where it is refitted, on enough data.

    They are enough where they are `LOOKED` pieces of about `TOKENS`, of which a batch is one at least. Not where a
    layer is to be looked at once.
    """
    if config.reconstruct != "auto":
        return config.reconstruct
    fitted = config.repair == "least-squares" and not getattr(config, "fast", False)
    return "kept" if fitted and sum(len(_even(batch["input_ids"], TOKENS)) for batch in data) >= LOOKED else "none"


def reconstruction(
    which: str, data: Sequence[Batch], statistics: Statistics, weights: TokenWeights | None, seed: int
) -> AfterLayer | None:
    """What is to be done after each layer of a refit: `learned_of_block`, or nothing for `which` none."""
    if which == "none":
        return None
    return partial(
        learned_of_block, which=which, queues=_queues(data), statistics=statistics, weights=weights, seed=seed
    )


def reconstruction_passes(which: str, data: Sequence[Batch]) -> Passes:
    """What it costs: its epochs, and the error before and after."""
    if which == "none":
        return Passes()
    queues = _queues(data)
    epochs, pieces = _epochs(queues), [*chain(*queues)]
    return Passes(epochs + 2 * len(_looked_at(pieces)) / len(pieces), epochs)


def _queues(data: Sequence[Batch]) -> Queues:
    """The rows of all batches in even pieces: how many there are depends little on how rows are batched."""
    queues: Queues = [[] for _ in range(PARTS)]
    for n, holder in enumerate(holders_of(data, PARTS)):
        queues[holder] += [(n, rows) for rows in _even(data[n]["input_ids"], TOKENS // PARTS)]
    if len(data) == 1:  # no two processes share it
        return [queues[0][part::PARTS] for part in range(PARTS)]
    return queues


def _even(ids: Tensor, tokens: int) -> list[slice]:
    """The rows of a batch in pieces of one size, of about so many tokens, or of a row."""
    pieces = max(1, math.ceil(ids.numel() / tokens))
    each = max(1, math.ceil(len(ids) / pieces))
    return [slice(start, start + each) for start in range(0, len(ids), each)]


def _epochs(queues: Queues) -> int:
    """How often all pieces are learned from."""
    return min(MOST, max(1, round(STEPS / max(map(len, queues)))))


def _looked_at(pieces: list[Piece]) -> list[Piece]:
    """The pieces at which the error is measured: all where they are few."""
    return pieces if len(pieces) < LOOKED else pieces[::LOOKED]


@torch.no_grad()
def learned_of_block(
    linears: Sequence[BlockLinear],
    pruned: Stream,
    wanted: After,
    *,
    which: str,
    queues: Queues,
    statistics: Statistics,
    weights: TokenWeights | None,
    seed: int,
) -> Values:
    """What the parameters of the layer of `linears` learn, by name, before which `pruned` stands; `which` as above.

    They learn from the pieces of `queues` to give `wanted`, and stay as they are. Nothing where it is no better for it.
    `weights` and the squared output gradients of `statistics` (those of the linear that writes last) say how much each
    token and each dimension matters; alike where they are not there. Masks are held, adapters are not trained.

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
    pieces = [*chain(*queues)]
    looked_at = _looked_at(pieces)
    if not block.stored:
        return {}
    with half_in_float32(layer):
        values = {name: _exact(parameter.detach()).clone() for name, parameter in block.stored.items()}
        before = block.total(looked_at, lambda given: float(block.error(given, values)))
        size = max(block.total(pieces, block.size) / len(pieces), torch.finfo(torch.float32).tiny)
        _train(block, values, queues, size, before / len(looked_at) / size, seed)
        after = block.total(looked_at, lambda given: float(block.error(given, values)))
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
    read: dict[int, Given] = field(default_factory=dict)
    """The batches that were read last, one of each queue."""

    @cached_property
    def holders(self) -> dict[int, tuple[int, int]]:
        """Number of a batch among all -> the process that holds it, and its number there."""
        told = shared_out(range(count()), lambda _: {"numbers": self.pruned.numbers})
        return {n: (holder, place) for holder, part in enumerate(told) for place, n in enumerate(part["numbers"])}

    def total(self, pieces: Sequence[Piece], measure: Callable[[Given], float]) -> float:
        """The sum of what is measured of each of these pieces, by the process that holds it."""
        own = [(place, n, rows) for place, (n, rows) in enumerate(pieces) if self.holders[n][0] == number()]
        found = known_to_all({str(place): measure(self.rows_of(n, rows)) for place, n, rows in own})
        return sum(found[str(place)] for place in range(len(pieces)))

    def rows_of(self, n: int, rows: slice) -> Given:
        """Rows of batch `n`, which is held here."""
        place = self.holders[n][1]
        if place not in self.read:
            if len(self.read) == PARTS:
                del self.read[next(iter(self.read))]
            self.read[place] = self._given(place)
        return self.read[place].rows(rows)

    def _given(self, place: int) -> Given:
        """A batch that is held here, with what the layer is to give for it and what each token counts."""
        inputs, by_token = self.pruned.inputs(place), None
        # A layer that runs several times has weights for the tokens of each run; one that has no units left has none.
        if self.weights is not None and self.last in self.weights[place]:
            keep = token_mask(inputs).bool()
            known = self.weights[place][self.last].reshape(self.pruned.runs, -1)[-1]
            by_token = known.new_zeros(keep.shape).masked_scatter(keep, known)
        return Given(inputs, self.pruned.hidden(place), self.wanted(place), by_token)

    def own(self, step: Sequence[Piece]) -> list[Given]:
        """What this process learns from in a step, all when it is alone."""
        return [self.rows_of(n, rows) for n, rows in step if self.holders[n][0] == number()]

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


def _train(block: _Block, values: Values, queues: Queues, size: float, error: float, seed: int) -> None:
    """Train `values` in place on these pieces, whose errors are divided by `size` and are about `error` then."""
    sizes = {name: max(float(value.square().mean().sqrt()), SMALLEST) for name, value in values.items()}
    rate = min(STEP * math.sqrt(error), LARGEST)
    groups = [{"params": [value.requires_grad_()], "lr": rate * sizes[name]} for name, value in values.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    epochs, draw = _epochs(queues), random.Random(seed)
    steps = epochs * max(map(len, queues))
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(epochs):
        for step in zip_longest(*(_drawn(queue, draw) for queue in queues)):
            found = _gradients(block, values, [piece for piece in step if piece is not None], size)
            for value, gradient, group in zip(values.values(), found, optimizer.param_groups, strict=True):
                value.grad = gradient
                if value not in optimizer.state:
                    group["eps"] = max(FAINT * float(gradient.square().mean().sqrt()), group["eps"])
            optimizer.step()
            schedule.step()


def _drawn(queue: list[Piece], draw: random.Random) -> list[Piece]:
    """The pieces in another order, those of a batch one after the other, for which it is read once."""
    batches: dict[int, list[Piece]] = {}
    for piece in queue:
        batches.setdefault(piece[0], []).append(piece)
    of_batches = (batches[n] for n in draw.sample(list(batches), len(batches)))
    return [piece for pieces in of_batches for piece in draw.sample(pieces, len(pieces))]


def _gradients(block: _Block, values: Values, step: Sequence[Piece], size: float) -> list[Tensor]:
    """Those of the errors of a step over `size` with respect to `values`, from the pieces of all processes."""
    found = [torch.zeros_like(value) for value in values.values()]
    for given in block.own(step):
        with torch.enable_grad():
            loss = block.error(given, values) / size
        if not bool(torch.isfinite(loss)):
            raise WorkError(f"layer.{block.index}: the error of what it gives is not finite")
        # Not `backward`: adapters that the layer holds would gather gradients too.
        for total, part in zip(found, torch.autograd.grad(loss, list(values.values()), allow_unused=True), strict=True):
            if part is not None:
                total += part
    return add_up_each(found)


def _exact(values: Tensor) -> Tensor:
    """The same in single precision, or in more where it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
