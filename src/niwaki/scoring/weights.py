"""Scores of single weights. Every scorer has the signature `score(linear, statistics, seed) -> Tensor[out, in]`.

A higher score means that zeroing the weight hurts more. All look at the effective weight `W + s * B @ A`. Their names
stand in `niwaki.config.layer_adaptive`.

magnitude: |W|. wanda: |W| * ||x_j||_2 (Sun et al., ICLR 2024). gradient: |W * dL/dW|, L the task loss. sparsegpt: what
the loss rises by when the weight goes and the rest of its row makes up for it, `1/2 G_ii W_ij^2 / [H^-1]_jj` with H
the second moment of the input (Frantar & Alistarh, ICML 2023) and G_ii the mean square of the loss gradient at
output i, so that rows and linears compare; alps the same, before its solve. random: the control.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from niwaki.adapters import effective_weight, mask_of
from niwaki.anatomy import BlockLinear
from niwaki.config import WEIGHT_SCORES, LayerAdaptive
from niwaki.config.by_name import by_name
from niwaki.config.layer_adaptive import SOLVED
from niwaki.numerics.solve import damped_inverse
from niwaki.observe import Need, Statistics
from niwaki.scoring.control import uniform_numbers

OBS_DAMPING = 1e-2


def magnitude(linear: BlockLinear, statistics: Statistics, seed: int) -> Tensor:
    """Absolute weight."""
    del statistics, seed
    return effective_weight(linear.module).abs()


def wanda(linear: BlockLinear, statistics: Statistics, seed: int) -> Tensor:
    """Absolute weight times the norm of its input."""
    del seed
    size = torch.as_tensor(statistics.linears[linear.name].input_squares).sqrt()
    return effective_weight(linear.module).abs() * size.float()


def sparsegpt(linear: BlockLinear, statistics: Statistics, seed: int) -> Tensor:
    """Loss rise with compensation along the row; without gradients (G = 1) the error of the output."""
    del seed
    sums = statistics.linears[linear.name]
    inverse = damped_inverse(
        torch.as_tensor(sums.moments).double() / statistics.tokens, linear.name, OBS_DAMPING
    ).diagonal()
    rise = effective_weight(linear.module).double().square() / inverse
    if isinstance(sums.gradient_squares, Tensor):
        rise = rise * (sums.gradient_squares.double()[:, None] / statistics.rows)
    return 0.5 * rise


def alps(linear: BlockLinear, statistics: Statistics, seed: int) -> Tensor:
    """That of `sparsegpt`: what a solve changes, it changes for all weights together."""
    return sparsegpt(linear, statistics, seed)


def gradient(linear: BlockLinear, statistics: Statistics, seed: int) -> Tensor:
    """Absolute product of weight and gradient."""
    del seed
    sums = statistics.linears[linear.name]
    return (effective_weight(linear.module) * torch.as_tensor(sums.weight_gradient)).abs() / statistics.rows


def random(linear: BlockLinear, statistics: Statistics, seed: int) -> Tensor:
    """Uniform random numbers."""
    del statistics
    return uniform_numbers(linear.shape, linear.name, seed)


WeightScorer = Callable[[BlockLinear, Statistics, int], Tensor]
WEIGHT_SCORERS: dict[str, WeightScorer] = by_name(WEIGHT_SCORES, sys.modules[__name__])
WEIGHT_NEEDS = {
    **dict.fromkeys(SOLVED, Need(moments=True, output_gradients=True)),
    "gradient": Need(weight_gradients=True),
}


def weight_scores(linear: BlockLinear, statistics: Statistics, config: LayerAdaptive) -> Tensor:
    """Scores `[out, in]` of the weights of one linear as `config` asks; what is zero already goes first."""
    found = WEIGHT_SCORERS[config.weight_score](linear, statistics, config.seed)
    mask = mask_of(linear.module)
    return found if mask is None else found.masked_fill(~mask, -torch.inf)
