"""The weight of one linear that does best what is asked of it, alone or under a mask.

For a linear with input x (after a 1, for the bias) and targets t, the weight that minimises
`sum w |t - W x|^2 + d |W - W0|^2` over the tokens, each of weight w, is
`W* = (sum w t x^T + d W0) (sum w x x^T + d I)^-1`. The ridge d pulls towards the weight as it was, so few data change
little (`ridge_share`). Any other W is worse by `tr((W - W*) H (W - W*)^T)`, H the damped moments: under a mask the
least of that is found by conjugate gradients that stay on the mask, preconditioned by the diagonal of H, all rows at
once (as ALPS, Meng et al., NeurIPS 2024, finds values for a support).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from niwaki.adapters import (
    bias_of,
    effective_bias,
    effective_weight,
    mask_of,
    set_effective_bias_,
    set_effective_weight_,
)
from niwaki.anatomy import BlockLinear
from niwaki.errors import WorkError
from niwaki.numerics.solve import damp
from niwaki.processes import Parts, by_rows

DAMPING = 1e-2
"""The least ridge, as a share of the mean of the diagonal of the moments: that of SparseGPT."""
NOISE = 1.0
"""How much of it targets are taken to hold, as a share of what follows from the inputs."""
STEPS, WARM_STEPS = 40, 10
"""Conjugate gradients at most, and from a start that is near already; rows whose residual is as good as zero no longer
move."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Of one linear `[out, in]`, in double precision, over the real tokens.

    moments: `[in + 1, in + 1]` sum of w x x^T, x the input after a 1.
    cross: `[out, in + 1]` sum of w t x^T, t the target; None where none was asked for.
    tokens: how many there are.
    """

    moments: Tensor
    cross: Tensor | None
    tokens: int


@dataclass(frozen=True, eq=False)
class Optimum:
    """`W*` `[out, in]` with its bias (None where the linear has none), and what says how good other weights are.

    `factor` `[in, in]` is the lower Cholesky factor of the damped moments of the inputs. With a bias these are about
    the mean: the bias is free for whatever becomes of the weights, and loses `change @ mean` when they change.
    `raised` is the share of the diagonal's mean that was needed, where the one that was meant was not enough.
    """

    weight: Tensor
    bias: Tensor | None
    factor: Tensor
    mean: Tensor
    raised: float | None

    @cached_property
    def moments(self) -> Tensor:
        """The damped moments themselves, `[in, in]`."""
        return self.factor @ self.factor.T


def ridge_share(inputs: int, tokens: int) -> float:
    """The ridge for targets, as a share of the mean of the diagonal of the moments, at least `DAMPING` and at most 1.

    The ridge of Hoerl, Kennard & Baldwin (1975) is `p s^2 / |b|^2`, of p inputs, noise s^2 and coefficients b: a share
    of `p / n` for n tokens, where targets hold as much noise as they follow from the inputs.
    """
    return min(max(DAMPING, NOISE * inputs / max(tokens, 1)), 1.0)


def optimum(linear: BlockLinear, sums: Sums) -> Optimum:
    """The best weight for these sums; without targets, the weight as it is (and no bias to refit).

    Raises:
        WorkError: moments that cannot be factorised however much they are damped, or a weight that is not finite.
    """
    bias = effective_bias(linear.module) if sums.cross is not None else None
    first = 1 if bias is None else 0
    meant = DAMPING if sums.cross is None else ridge_share(linear.shape[1], sums.tokens)
    damped = damp(sums.moments[first:, first:], linear.name, meant)
    raised = damped.damping if damped.damping > meant else None
    before = effective_weight(linear.module).double()
    none = before.new_zeros(before.shape[1])
    if sums.cross is None:
        return Optimum(before, None, damped.factor, none, raised)
    if bias is not None:
        before = torch.cat([bias.double()[:, None], before], 1)
    best = torch.cholesky_solve((sums.cross[:, first:] + damped.ridge * before).T, damped.factor).T
    if not bool(torch.isfinite(best).all()):
        raise WorkError(f"{linear.name}: the refitted weights are not finite")
    if bias is None:
        return Optimum(best, None, damped.factor, none, raised)
    mean = sums.moments[1:, 0] / (sums.moments[0, 0] + damped.ridge)
    # What is left of a Cholesky factor without its first row and column is that of the moments about the mean.
    return Optimum(best[:, 1:], best[:, 0], damped.factor[1:, 1:], mean, raised)


def excess(best: Optimum, weight: Tensor) -> float:
    """By how much `weight` `[out, in]` does worse than `best`: `tr((W - W*) H (W - W*)^T)`."""
    change = best.weight - weight
    of_rows = by_rows(change.new_empty(len(change)), lambda rows: (change[rows] @ best.factor).square().sum(1))
    return float(of_rows.sum())


def on_mask(best: Optimum, mask: Tensor, start: Tensor | None = None) -> Tensor:
    """Of the weights `[out, in]` that are zero where `mask` `[out, in]` is False, that nearest to `best` under H.

    `start` `[out, in]` is where the search begins, near already; what the mask leaves of `best` by default.
    """
    moments, steps = best.moments, STEPS if start is None else WARM_STEPS
    first = best.weight if start is None else start.to(best.weight)
    return by_rows(first, lambda rows: _on_mask(best.weight[rows], moments, mask[rows], first[rows], steps))


def _on_mask(best: Tensor, moments: Tensor, mask: Tensor, start: Tensor, steps: int) -> Tensor:
    """Some rows of it, under H."""
    inverse = moments.diagonal().reciprocal()
    weight = start * mask
    residual = ((best - weight) @ moments) * mask
    direction = residual * inverse
    size = (residual * direction).sum(1, keepdim=True)
    enough = 1e-12 * (best @ moments * best).sum(1, keepdim=True)
    for _ in range(steps):
        moving = size > enough
        if not bool(moving.any()):
            break
        pushed = (direction @ moments) * mask
        step = torch.where(moving, size / (direction * pushed).sum(1, keepdim=True), 0.0)
        weight = weight + step * direction
        residual = residual - step * pushed
        conditioned = residual * inverse
        after = (residual * conditioned).sum(1, keepdim=True)
        direction = conditioned + torch.where(moving, after / size, 0.0) * direction
        size = torch.where(moving, after, size)
    return weight


def fit_with(best: Optimum, weight: Tensor) -> Parts:
    """`weight` `[out, in]`, and the `bias` that suits it, None where none was fitted."""
    bias = None if best.bias is None else best.bias + (best.weight - weight) @ best.mean
    return {"weight": weight, "bias": bias}


def fit(linear: BlockLinear, sums: Sums) -> Parts:
    """The best weight and bias of a linear; of one that holds a mask the best under it.

    Raises:
        WorkError: see `optimum`.
    """
    best, mask = optimum(linear, sums), mask_of(linear.module)
    return fit_with(best, best.weight if mask is None else on_mask(best, mask))


def fit_bias(linear: BlockLinear, sums: Sums) -> Parts:
    """The best bias of a linear that has one, for its weight as it is: the mean of what is missing."""
    if bias_of(linear.module) is None or sums.cross is None:
        return {"weight": None, "bias": None}
    given = effective_weight(linear.module).double() @ sums.moments[1:, 0]
    return {"weight": None, "bias": (sums.cross[:, 0] - given) / sums.moments[0, 0]}


def store_(linear: BlockLinear, fitted: Parts) -> None:
    """Give a linear the `weight` and the `bias` that were fitted; it keeps what is None.

    Raises:
        WorkError: one that is not finite, naming the linear.
    """
    weight, bias = fitted["weight"], fitted["bias"]
    for values, what in ((weight, "weights are"), (bias, "bias is")):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise WorkError(f"{linear.name}: the refitted {what} not finite")
    if bias is not None:
        set_effective_bias_(linear.module, bias)
    if weight is not None:
        set_effective_weight_(linear.module, weight)
