"""Scores of layers. Every scorer has the signature `score(linear, statistics, seed) -> float`, at least 0.

A higher score means a more important linear; that of a block is the mean of its linears, weighted by their weights.

output-gradient: mean |dL/dy| at the output y, by hooks, so frozen layers count (the seed's). activation-magnitude: mean
|y| (the seed's). fisher: `1/2 sum_ij G_ii W_ij^2 H_jj`, the loss rise under the diagonal Kronecker-factored Fisher if
all its weights went, per weight. block-influence: 1 - cos of what enters and leaves the block (ShortGPT, Men et al.,
2024). outliers: share of the |W| * ||x|| that are above 5 times their mean (OWL, Yin et al., ICML 2024). spectrum:
one over the power-law exponent of the eigenvalues of W^T W, by Hill's estimator on their upper half, data-free
(AlphaPruning, Lu et al., NeurIPS 2024). random: the control. `sensitivity`, which runs the model, is in its own file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch

from niwaki.adapters import effective_weight
from niwaki.anatomy import BlockLinear
from niwaki.observe.linears import WeightNeed, WeightStatistics
from niwaki.scoring.weights import wanda

OUTLIER = 5.0


def output_gradient(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """Mean absolute gradient of a row's task loss at the output."""
    del seed
    return statistics.linears[linear.name].gradient_size / (statistics.tokens * linear.shape[0])


def activation_magnitude(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """Mean absolute output."""
    del seed
    return statistics.linears[linear.name].activation_size / (statistics.tokens * linear.shape[0])


def fisher(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """Loss rise per weight if all went."""
    del seed
    sums = statistics.linears[linear.name]
    g = torch.as_tensor(sums.gradient_squares).double() / statistics.rows
    h = torch.as_tensor(sums.input_squares).double() / statistics.tokens
    return float(0.5 * g @ effective_weight(linear.module).double().square() @ h) / linear.size


def block_influence(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """Mean of 1 - cos(input, output) of the linear's block."""
    del seed
    return max(0.0, statistics.linears[linear.name].influence / statistics.tokens)


def outliers(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """Share of outlying weights."""
    products = wanda(linear, statistics, seed)
    return float((products > OUTLIER * products.mean()).double().mean())


def spectrum(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """One over the exponent of the spectrum's tail: heavy tails are well trained."""
    del statistics, seed
    values = torch.linalg.svdvals(effective_weight(linear.module).double()).square().clamp_min(1e-300)
    count = max(1, len(values) // 2)
    tail = values[: count + 1].log()
    excess = float((tail[:count] - tail[-1]).sum())
    return 1.0 / (1.0 + count / excess) if excess > 0 else 0.0


def random(linear: BlockLinear, statistics: WeightStatistics, seed: int) -> float:
    """Uniform in [0, 1], the same for the same name and seed."""
    del statistics
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(linear.name.encode()))
    return float(torch.rand((), generator=generator))


LayerScorer = Callable[[BlockLinear, WeightStatistics, int], float]
LAYER_SCORERS: dict[str, LayerScorer] = {
    "output-gradient": output_gradient,
    "activation-magnitude": activation_magnitude,
    "fisher": fisher,
    "block-influence": block_influence,
    "outliers": outliers,
    "spectrum": spectrum,
    "random": random,
}
LAYER_NEEDS = {
    "output-gradient": WeightNeed(task_gradients=True),
    "fisher": WeightNeed(output_gradients=True),
}


def block_means(scores: dict[str, float], linears: list[BlockLinear]) -> dict[str, float]:
    """Every linear's score replaced by its block's: the mean over the block's weights."""
    means = {}
    for layer in {linear.layer for linear in linears}:
        inside = [linear for linear in linears if linear.layer == layer]
        means[layer] = sum(scores[x.name] * x.size for x in inside) / sum(x.size for x in inside)
    return {linear.name: means[linear.layer] for linear in linears}
