"""Linear by linear, bottom-up: the sums of the least squares that fit each to the dense model.

For a linear with input x in the pruned model (a 1 appended for the bias), let t be what it should give: the dense
linear's output on the dense model's input; for the projections into the residual stream
`dense(residual + output) - pruned(residual)`, so that what earlier cuts did wrong is made good there too (K-prune, Park
et al., ICLR 2024, fits output projections so). The weight that minimises `sum w |t - W x|^2 + d |W - W0|^2` over the
tokens, each of weight w, is `W* = (sum w t x^T + d W0) (sum w x x^T + d I)^-1`. The ridge d pulls towards the weight as
it was, so few data change little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from niwaki.anatomy import BlockLinear, evaluation_mode, layers_of, linears_of
from niwaki.errors import WorkError
from niwaki.lora import bias_of, effective_weight
from niwaki.observe import Batch
from niwaki.observe_tokens import TokenWeights
from niwaki.repair.stream import Stream
from niwaki.solve import damp

DAMPING = 1e-2
"""The ridge, as a share of the mean of the diagonal of the moments."""
GROUPS = (("query", "key", "value"), ("output",), ("up",), ("down",))
"""Parts of a layer in the order of the data; those of one group see the same input."""
INNER = {"attention": ("query", "key", "value"), "ffn": ("up",)}
"""Parts that read the residual stream, by kind of site."""
RESIDUAL = ("output", "down")
"""Parts that write into it."""
REFIT_PASSES = 6.0
"""About as many forward passes of a model over the data as one call of `bottom_up` runs, of both models together."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Of one linear `[out, in]`, in double precision, over the real tokens.

    moments: `[in + 1, in + 1]` sum of w x x^T, x the input with a 1 appended.
    cross: `[out, in + 1]` sum of w t x^T, t the target; None where none was asked for.
    """

    moments: Tensor
    cross: Tensor | None


@torch.no_grad()
def bottom_up(
    model: nn.Module,
    dense: nn.Module,
    data: Sequence[Batch],
    *,
    parts: Sequence[str] = ("query", "key", "value", "output", "up", "down"),
    rows: dict[str, Tensor] | None = None,
    weights: TokenWeights | None = None,
    targets: bool = True,
    progress: bool = False,
) -> Iterator[tuple[BlockLinear, Sums]]:
    """Yield each linear of `parts` with its sums. Whoever asks changes the linear before asking for the next.

    `rows` names, by linear, the rows `[out]` of the dense linear that are still there. Both models are in evaluation
    mode meanwhile.
    """
    with evaluation_mode(model, dense):
        theirs = {(x.layer, x.part): x for x in linears_of(dense, emptied=True)}
        ours = {(x.layer, x.part): x for x in linears_of(model, emptied=True)}
        dense_run, pruned_run = Stream(dense, data), Stream(model, data)
        layers = range(len(layers_of(model)))
        for index in tqdm(layers, desc="repair", unit="layer", disable=not progress, leave=False):
            for group in GROUPS:
                linears = [ours[index, part] for part in group if part in parts and (index, part) in ours]
                if linears:
                    wanted = [theirs[index, linear.part] for linear in linears] if targets else None
                    found = _sums(dense_run, pruned_run, linears, wanted, rows or {}, weights)
                    yield from zip(linears, found, strict=True)
            dense_run.advance(index)
            pruned_run.advance(index)


def _sums(
    dense_run: Stream,
    pruned_run: Stream,
    linears: list[BlockLinear],
    wanted: list[BlockLinear] | None,
    rows: dict[str, Tensor],
    weights: TokenWeights | None,
) -> list[Sums]:
    index, residual = linears[0].layer, linears[0].part in RESIDUAL
    inputs, outputs = {"x": linears[0].module}, {}
    goals: Iterator[dict[str, Tensor]] = iter(lambda: {}, None)
    if wanted is not None and residual:
        inputs["sum"], outputs["y"] = linears[0].site.residual_sum, linears[0].module
        goals = dense_run.seen(index, {linears[0].part: wanted[0].site.residual_sum}, {})
    elif wanted is not None:
        goals = dense_run.seen(index, {}, {linear.part: linear.module for linear in wanted})
    moments: list[Tensor | float] = [0.0] * len(linears)
    cross: list[Tensor | float] = [0.0] * len(linears)
    for batch, (seen, goal) in enumerate(
        zip(pruned_run.seen(index, inputs, outputs), goals, strict=wanted is not None)
    ):
        x = torch.cat([seen["x"], seen["x"].new_ones(len(seen["x"]), 1)], 1).float()
        for number, linear in enumerate(linears):
            weighted = x if weights is None else x * weights[batch][linear.name][:, None]
            shared = weights is None and number > 0
            moments[number] = moments[0] if shared else moments[number] + (weighted.T @ x).double()
            if wanted is not None:
                target = goal[linear.part]
                if residual:
                    target = target - (seen["sum"] - seen["y"])
                if linear.name in rows:
                    target = target[:, rows[linear.name]]
                cross[number] = cross[number] + (target.float().T @ weighted).double()
    return [
        Sums(torch.as_tensor(moments[number]), torch.as_tensor(cross[number]) if wanted is not None else None)
        for number in range(len(linears))
    ]


@dataclass(frozen=True, eq=False)
class Optimum:
    """`W*` `[out, in]` with its bias (None where the linear has none), and the damped moments of the inputs `[in, in]`.

    With a bias these are about the mean: the bias is free for whatever becomes of the weights, and loses
    `change @ mean` when they change. `damping` is the share of the diagonal's mean that was needed.
    """

    weight: Tensor
    bias: Tensor | None
    moments: Tensor
    mean: Tensor
    damping: float


def optimum(linear: BlockLinear, sums: Sums) -> Optimum:
    """The best weight for these sums; without targets, the weight as it is (and no bias to refit).

    Raises:
        WorkError: moments that cannot be factorised however much they are damped, or a weight that is not finite.
    """
    n = sums.moments.shape[0] - 1
    bias = bias_of(linear.module) if sums.cross is not None else None
    size = n if bias is None else n + 1
    damped = damp(sums.moments[:size, :size], linear.name, DAMPING)
    before = effective_weight(linear.module).double()
    if sums.cross is None:
        return Optimum(before, None, damped.moments, before.new_zeros(n), damped.damping)
    if bias is not None:
        before = torch.cat([before, bias.double()[:, None]], 1)
    best = torch.cholesky_solve((sums.cross[:, :size] + damped.ridge * before).T, damped.factor).T
    if not bool(torch.isfinite(best).all()):
        raise WorkError(f"{linear.name}: the refitted weights are not finite")
    if bias is None:
        return Optimum(best, None, damped.moments, before.new_zeros(n), damped.damping)
    mean = damped.moments[:n, n] / damped.moments[n, n]
    centred = damped.moments[:n, :n] - damped.moments[n, n] * torch.outer(mean, mean)
    return Optimum(best[:, :n], best[:, n], centred, mean, damped.damping)
