"""One streamed pass over calibration data -> running sums of every linear of the blocks.

The sibling of `niwaki.observe` for single weights: sums over real tokens, gradients by hooks (frozen weights count),
nothing that grows with the data, and nothing larger than a linear's inputs or outputs but for the gradient of its
weight. Whole second moments of the inputs are summed a layer at a time, by `niwaki.observe.moments`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from niwaki.anatomy import BlockLinear, layers_of, linears_of, real_logits, with_labels
from niwaki.data import token_mask
from niwaki.errors import RequestError, WorkError
from niwaki.observe.tokens import logit_contrast
from niwaki.observe.units import Batch, TokenWeights, at_tokens, frozen, losses_in, to_device


@dataclass
class LinearStatistics:
    """Sums of one linear `[out, in]` over tokens.

    input_squares: `[in]` sum of x^2, x the input.
    gradient_squares: `[out]` sum of g^2, g the gradient of a logit contrast at the output (`niwaki.observe.tokens`).
    moments: `[in, in]` sum of x x^T, each token weighed by what it matters: filled in for one linear at a time.
    weight_gradient: `[out, in]` gradient of the summed task loss with respect to the weight.
    gradient_size: sum of |dL/dy|, L the task loss of a row, over the elements of the output y.
    activation_size: sum of |y| over the elements of the output.
    influence: sum of 1 - cos(input, output) of the block that the linear is in.
    """

    input_squares: Tensor | float = 0.0
    gradient_squares: Tensor | float = 0.0
    moments: Tensor | float = 0.0
    weight_gradient: Tensor | float = 0.0
    gradient_size: float = 0.0
    activation_size: float = 0.0
    influence: float = 0.0

    def __add__(self, other: LinearStatistics) -> LinearStatistics:
        return LinearStatistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class WeightStatistics:
    """Sums of all linears by name, with the number of tokens and rows they are over.

    token_sizes: of each batch, by linear, |g|^2 of every real token: the one thing that is not a sum, one number each.
    """

    linears: dict[str, LinearStatistics] = field(default_factory=dict)
    token_sizes: TokenWeights = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    forward_passes: float = 0.0
    backward_passes: float = 0.0

    def __add__(self, other: WeightStatistics) -> WeightStatistics:
        empty = LinearStatistics()
        names = {**self.linears, **other.linears}
        return WeightStatistics(
            {name: self.linears.get(name, empty) + other.linears.get(name, empty) for name in names},
            self.token_sizes + other.token_sizes,
            self.tokens + other.tokens,
            self.rows + other.rows,
            max(self.forward_passes, other.forward_passes),
            max(self.backward_passes, other.backward_passes),
        )


@dataclass(frozen=True)
class WeightNeed:
    """What a request needs beside sizes of activations.

    Gradients of a logit contrast and of the task loss, sizes of the former token by token, whole moments of the inputs.
    """

    output_gradients: bool = False
    token_sizes: bool = False
    task_gradients: bool = False
    weight_gradients: bool = False
    moments: bool = False

    @property
    def task(self) -> bool:
        """Whether the task loss is run backward."""
        return self.task_gradients or self.weight_gradients

    @property
    def contrast(self) -> bool:
        """Whether a logit contrast is run backward."""
        return self.output_gradients or self.token_sizes

    def __or__(self, other: WeightNeed) -> WeightNeed:
        return WeightNeed(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))


def observe_linears(
    model: nn.Module,
    data: Iterable[Batch],
    need: WeightNeed,
    *,
    seed: int = 0,
    progress: bool = False,
) -> WeightStatistics:
    """Run the calibration batches once through `model` and return the sums that `need` asks for.

    Raises:
        RequestError: no batches; task gradients asked of batches without labels.
        WorkError: logits, a loss or a statistic that is not finite, naming the linear where one can be named.
    """
    linears = linears_of(model)
    total = WeightStatistics({linear.name: LinearStatistics() for linear in linears})
    generator = torch.Generator().manual_seed(seed)
    with frozen(model, with_gradients=need.task or need.contrast) as device:
        for batch in tqdm(data, desc="observe", unit="batch", disable=not progress, leave=False):
            found = _observe_batch(model, linears, to_device(batch, device), need, generator)
            total = total + found
    if not total.rows:
        raise RequestError("data must hold at least one batch, got none")
    for name, statistics in total.linears.items():
        for f in fields(statistics):
            if not bool(torch.isfinite(torch.as_tensor(getattr(statistics, f.name))).all()):
                raise WorkError(f"{name}: statistic {f.name!r} is not finite; check the weights and the inputs")
    total.forward_passes = 1.0
    total.backward_passes = float(need.task) + float(need.contrast)
    return total


def _observe_batch(
    model: nn.Module,
    linears: list[BlockLinear],
    batch: Batch,
    need: WeightNeed,
    generator: torch.Generator,
) -> WeightStatistics:
    mask = token_mask(batch)
    keep = mask.bool()
    found = {linear.name: LinearStatistics() for linear in linears}
    sizes: dict[str, Tensor] = {}
    batch = with_labels(model, batch) if need.task else batch
    of_task = False  # which loss the gradients are of that come by

    def look(linear: BlockLinear, x: Tensor, y: Tensor) -> None:
        sums = found[linear.name]
        sums.input_squares = sums.input_squares + at_tokens(x.detach(), keep).float().square().sum(0)
        sums.activation_size += float(at_tokens(y.detach(), keep).float().abs().sum())
        inputs = at_tokens(x.detach(), keep) if need.weight_gradients else None

        def note(gradient: Tensor) -> None:
            g = at_tokens(gradient, keep).float()
            if of_task:
                sums.gradient_size += float(g.abs().sum())
                sums.weight_gradient = sums.weight_gradient + (0.0 if inputs is None else g.T @ inputs.float())
                return
            squares = g.square()
            sums.gradient_squares = sums.gradient_squares + squares.sum(0)
            if need.token_sizes:  # of a layer that runs again, the last run's gradients come first
                later = [sizes[linear.name]] if linear.name in sizes else []
                sizes[linear.name] = torch.cat([squares.sum(1), *later])

        if y.requires_grad:
            y.register_hook(note)  # the gradients are summed as they come, not held

    with ExitStack() as stack:
        for linear in linears:

            def capture(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, linear: BlockLinear = linear) -> None:
                look(linear, args[0], output)

            stack.callback(linear.module.register_forward_hook(capture).remove)
        for index, layer in enumerate(layers_of(model)):

            def compare(_module: nn.Module, args: tuple[Tensor, ...], output: Any, index: int = index) -> None:
                after = output[0] if isinstance(output, tuple) else output
                cosine = F.cosine_similarity(args[0].detach()[keep].float(), after.detach()[keep].float(), dim=-1)
                lost = float((1 - cosine).sum())
                for linear in linears:
                    if linear.layer == index:
                        found[linear.name].influence += lost

            stack.callback(layer.register_forward_hook(compare).remove)
        with torch.set_grad_enabled(need.task or need.contrast):
            outputs = model(**batch)
    if not bool(torch.isfinite(outputs.logits).all()):
        broken = next((n for n, sums in found.items() if not math.isfinite(sums.activation_size)), "the task head")
        raise WorkError(f"calibration: the model's logits are not finite; first seen in {broken}")
    if need.task:
        if "labels" not in batch:
            raise RequestError("data must hold labels for scores from task gradients, got batches without `labels`")
        of_task = True
        (outputs.loss * losses_in(model, batch)).backward(retain_graph=need.contrast)
        of_task = False
    if need.contrast:
        logit_contrast(real_logits(outputs.logits, keep), generator).backward()
    return WeightStatistics(found, [sizes], int(keep.sum()), len(mask))
