"""What one pass over calibration data leaves: running sums of linears and of their units, and what was asked for.

All are sums over real (not padded) tokens or over rows, so two observations add: over batches, processes, restarts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from niwaki.errors import WorkError
from niwaki.observe.tokens import TokenWeights, over_mean
from niwaki.processes import add_up, add_up_each, count

Batch = dict[str, Any]
"""Tensors by name, as a collator gives them: `input_ids` `[rows, length]`, `attention_mask`, `labels`."""


@dataclass(frozen=True)
class Passes:
    """Passes over the calibration data, forward and backward: what work costs, whatever the machine."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)


class _Sums:
    """Fields that are numbers or tensors, and add one by one."""

    def __add__(self, other: Any) -> Any:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))  # type: ignore[arg-type]


@dataclass
class LinearSums(_Sums):
    """Sums of one linear `[out, in]` over tokens; x is its input, g the gradient of a logit contrast at its output.

    inputs: `[in]` sum of x.
    input_squares: `[in]` sum of x^2.
    moments: `[in, in]` sum of w x x^T, w what the token matters: given for one linear at a time, see
        `niwaki.observe.moments`.
    gradient_squares: `[out]` sum of g^2.
    gradient_moments: `[out, out]` sum of g g^T, of linears that write into the residual stream.
    weight_gradient: `[out, in]` gradient of the summed task loss with respect to the weight.
    gradient_size: sum of |dL/dy|, L the task loss of a row, over the elements of the output y.
    activation_size: sum of |y| over the elements of the output.
    influence: sum of 1 - cos(input, output) of the layer that the linear is in.
    """

    inputs: Tensor | float = 0.0
    input_squares: Tensor | float = 0.0
    moments: Tensor | float = 0.0
    gradient_squares: Tensor | float = 0.0
    gradient_moments: Tensor | float = 0.0
    weight_gradient: Tensor | float = 0.0
    gradient_size: float = 0.0
    activation_size: float = 0.0
    influence: float = 0.0


@dataclass
class UnitSums(_Sums):
    """Sums of the units of one site over rows.

    fisher: `[units]` sum over rows of (dL/dm)^2, m a mask on the unit, L the task loss of the row.
    taylor: `[units]` sum over rows of |dL/dm|.
    attention: `[units, 3]` per head: variance over keys, over inputs, and the number of (row, query) pairs.
    """

    fisher: Tensor | float = 0.0
    taylor: Tensor | float = 0.0
    attention: Tensor | float = 0.0


@dataclass
class Statistics:
    """Sums of all linears and sites by name, with the number of tokens and rows they are over.

    token_sizes: of each batch, by linear, |g|^2 of every real token: the one thing that is not a sum, one number each.
    """

    linears: dict[str, LinearSums] = field(default_factory=dict)
    sites: dict[str, UnitSums] = field(default_factory=dict)
    token_sizes: TokenWeights = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    passes: Passes = Passes()

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            _added(self.linears, other.linears, LinearSums()),
            _added(self.sites, other.sites, UnitSums()),
            self.token_sizes + other.token_sizes,
            self.tokens + other.tokens,
            self.rows + other.rows,
            max(self.passes, other.passes, key=lambda passes: (passes.forward, passes.backward)),
        )

    def add_up_(self) -> None:
        """Add, in place, what other processes summed. Token sizes stay those of the batches that this one worked on."""
        if count() == 1:
            return
        every = (*self.linears.values(), *self.sites.values())
        places = [(sums, f.name) for sums in every for f in fields(sums)]
        values = [getattr(sums, name) for sums, name in places]
        own = [value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.double) for value in values]
        for (sums, name), value, total in zip(places, values, add_up_each(own), strict=True):
            setattr(sums, name, total if isinstance(value, Tensor) else float(total))
        tokens, rows = add_up(torch.tensor([self.tokens, self.rows])).tolist()
        self.tokens, self.rows = tokens, rows

    @property
    def token_weights(self) -> TokenWeights:
        """How much each token matters to each linear, from the sizes of its gradients."""
        return over_mean(self.token_sizes)

    def with_moments(self, name: str, moments: Tensor) -> Statistics:
        """The same, but that the linear `name` has these second moments `[in, in]`."""
        return replace(self, linears={**self.linears, name: replace(self.linears[name], moments=moments)})

    def check_finite(self) -> None:
        """Refuse sums that a weight or an input that is not finite has spoilt.

        Raises:
            WorkError: naming the linear or site.
        """
        for name, sums in (*self.linears.items(), *self.sites.items()):
            for f in fields(sums):
                if not bool(torch.isfinite(torch.as_tensor(getattr(sums, f.name))).all()):
                    raise WorkError(f"{name}: statistic {f.name!r} is not finite; check the weights and the inputs")


def _added(ours: dict[str, Any], theirs: dict[str, Any], nothing: Any) -> dict[str, Any]:
    return {name: ours.get(name, nothing) + theirs.get(name, nothing) for name in {**ours, **theirs}}


@dataclass(frozen=True)
class Need:
    """What is asked of one pass beside sizes of activations and the influence of layers.

    task_gradients: of the task loss, at outputs and at units. weight_gradients: of the task loss, at weights.
    output_gradients: of a logit contrast, their squares. gradient_moments: whole second moments of these.
    token_sizes: their size token by token. attention: maps of attention. moments: whole second moments of inputs, in a
    pass of their own.
    """

    task_gradients: bool = False
    weight_gradients: bool = False
    output_gradients: bool = False
    gradient_moments: bool = False
    token_sizes: bool = False
    attention: bool = False
    moments: bool = False

    @property
    def task(self) -> bool:
        """Whether the task loss is run backward."""
        return self.task_gradients or self.weight_gradients

    @property
    def contrast(self) -> bool:
        """Whether a logit contrast is run backward."""
        return self.output_gradients or self.gradient_moments or self.token_sizes

    def __or__(self, other: Need) -> Need:
        return Need(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))


def need_of(table: dict[str, Need], *names: str) -> Need:
    """What these scores need together, by a table of those that need anything."""
    need = Need()
    for name in names:
        need = need | table.get(name, Need())
    return need


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def at_tokens(values: Tensor, keep: Tensor) -> Tensor:
    """`[real tokens, n]` of `values` `[rows, length, n]`, which some layers flatten to `[rows * length, n]`."""
    return values.reshape(*keep.shape, values.shape[-1])[keep]
