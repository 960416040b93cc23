"""Scores of layers. Every scorer has the signature `score(linears, statistics, seed) -> {name: float}`, none below 0.

A higher score means a more important linear. Their names stand in `niwaki.config.layer_adaptive`.

output-gradient: mean |dL/dy| at the output y, by hooks, so frozen layers count (the seed's). activation-magnitude: mean
|y| (the seed's). gradient-activation: the product of the two. fisher: `1/2 sum_ij G_ii W_ij^2 H_jj`, the loss rise
under the diagonal Kronecker-factored Fisher if all its weights went, per weight. block-influence: 1 - cos of what
enters and leaves the block (ShortGPT, Men et al., 2024). outliers: share of the |W| * ||x|| of a whole block that are
above 5 times their mean (OWL, Yin et al., ICML 2024). spectrum: one over the power-law exponent of the eigenvalues of
W^T W, by Hill's estimator on their upper half, data-free (AlphaPruning, Lu et al., NeurIPS 2024). random: the control.
`sensitivity`, which runs the model, is in its own file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from niwaki.adapters import effective_weight
from niwaki.anatomy import BlockLinear
from niwaki.config import LAYER_SCORES, LayerAdaptive
from niwaki.config.by_name import by_name
from niwaki.observe import Batch, Need, Statistics
from niwaki.scoring.control import uniform_numbers
from niwaki.scoring.sensitivity import sensitivity
from niwaki.scoring.weights import wanda

OUTLIER = 5.0

Linears = Sequence[BlockLinear]


def _seen(linear: BlockLinear, statistics: Statistics) -> int:
    """How many tokens came by a linear: all of them every time that its layer ran."""
    return statistics.tokens * linear.site.runs


def output_gradient(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Mean absolute gradient of a row's task loss at the output."""
    del seed
    return {x.name: statistics.linears[x.name].gradient_size / (_seen(x, statistics) * x.shape[0]) for x in linears}


def activation_magnitude(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Mean absolute output."""
    del seed
    return {x.name: statistics.linears[x.name].activation_size / (_seen(x, statistics) * x.shape[0]) for x in linears}


def gradient_activation(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Mean absolute gradient at the output times its mean size."""
    sizes = activation_magnitude(linears, statistics, seed)
    return {name: size * sizes[name] for name, size in output_gradient(linears, statistics, seed).items()}


def fisher(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Loss rise per weight if all went."""
    del seed
    found = {}
    for linear in linears:
        sums = statistics.linears[linear.name]
        g = torch.as_tensor(sums.gradient_squares).double() / statistics.rows
        h = torch.as_tensor(sums.input_squares).double() / _seen(linear, statistics)
        found[linear.name] = float(0.5 * g @ effective_weight(linear.module).double().square() @ h) / linear.size
    return found


def block_influence(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Mean of 1 - cos(input, output) of the linear's block."""
    del seed
    return {x.name: max(0.0, statistics.linears[x.name].influence / _seen(x, statistics)) for x in linears}


def outliers(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Share of outlying weights, counted over all linears of a block together: all of these get that of the block."""
    found = {}
    for inside in blocks_of(linears):
        size = sum(linear.size for linear in inside)
        products = [wanda(linear, statistics, seed) for linear in inside]
        threshold = OUTLIER * sum(float(product.double().sum()) for product in products) / size
        share = sum(int((product > threshold).sum()) for product in products) / size
        found |= {linear.name: share for linear in inside}
    return found


def spectrum(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """One over the exponent of the spectrum's tail: heavy tails are well trained."""
    del statistics, seed
    found = {}
    for linear in linears:
        values = torch.linalg.svdvals(effective_weight(linear.module).double()).square().clamp_min(1e-300)
        count = max(1, len(values) // 2)
        tail = values[: count + 1].log()
        excess = float((tail[:count] - tail[-1]).sum())
        found[linear.name] = 1.0 / (1.0 + count / excess) if excess > 0 else 0.0
    return found


def random(linears: Linears, statistics: Statistics, seed: int) -> dict[str, float]:
    """Uniform random numbers."""
    del statistics
    return {linear.name: float(uniform_numbers((), linear.name, seed)) for linear in linears}


LayerScorer = Callable[[Linears, Statistics, int], dict[str, float]]
SENSITIVITY = "sensitivity"
LAYER_SCORERS: dict[str, LayerScorer] = by_name(
    (name for name in LAYER_SCORES if name != SENSITIVITY), sys.modules[__name__]
)
LAYER_NEEDS = {
    "output-gradient": Need(task_gradients=True),
    "gradient-activation": Need(task_gradients=True),
    "fisher": Need(output_gradients=True),
}


def blocks_of(linears: Linears) -> list[list[BlockLinear]]:
    """The linears of each block."""
    return [[x for x in linears if x.layer == layer] for layer in sorted({x.layer for x in linears})]


def block_means(scores: dict[str, float], linears: Linears) -> dict[str, float]:
    """Every linear's score replaced by its block's: the mean over the block's weights."""
    found = {}
    for inside in blocks_of(linears):
        mean = sum(scores[x.name] * x.size for x in inside) / sum(x.size for x in inside)
        found |= {linear.name: mean for linear in inside}
    return found


def layer_importance(
    model: nn.Module, linears: Linears, statistics: Statistics, data: Sequence[Batch], config: LayerAdaptive
) -> dict[str, float]:
    """The importance of every linear by name as `config` asks; that of its block for owl and where blocks are asked."""
    assert config.layer_score is not None, "the rule looks at no importance"
    if config.layer_score == SENSITIVITY:
        scores = sensitivity(model, linears, data, config.seed)
    else:
        scores = LAYER_SCORERS[config.layer_score](linears, statistics, config.seed)
    return block_means(scores, linears) if config.rule == "owl" or config.granularity == "block" else scores
