"""What an allocation knows of every linear: its bounds, its importance, the scores of its weights, its loss curve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import effective_weight, mask_of
from niwaki.allocation.sparsity import LinearProfile, Profiles
from niwaki.anatomy import BlockLinear, linears_of
from niwaki.config import LayerAdaptive
from niwaki.observe.linears import WeightNeed, WeightStatistics, observe_linears
from niwaki.observe.moments import input_moments
from niwaki.observe.units import Batch, TokenWeights
from niwaki.scoring.layers import LAYER_NEEDS, LAYER_SCORERS, block_means
from niwaki.scoring.sensitivity import sensitivity
from niwaki.scoring.weights import WEIGHT_NEEDS, WEIGHT_SCORERS
from niwaki.sparsify.curves import Curve, loss_curve

LAYER_RULES = ("inverse-importance", "owl")
DATA_RULES = (*LAYER_RULES, "search")
"""Allocations that look at calibration data. For any other, all linears are alike: their importance is not measured."""
DATA_SCORES = ("wanda", "gradient")
"""Weight scores made of what one pass through the whole model sums; those of `sparsegpt` are summed layer by layer."""


def profiles_of(model: nn.Module, config: LayerAdaptive, data: Iterable[Batch]) -> Profiles:
    """What the allocation of `config` knows of every linear as `model` stands; only `DATA_RULES` look at `data`.

    Raises:
        RequestError: no batches for a rule that needs them. WorkError: a statistic is not finite.
    """
    linears = linears_of(model)
    if config.allocation not in DATA_RULES:
        magnitudes = {linear.name: effective_weight(linear.module).abs() for linear in linears}
        return profiles_from(linears, config, {}, magnitudes, {})
    batches = list(data)
    statistics = observe_linears(model, batches, weight_need(config), seed=config.seed)
    importance = layer_importance(model, linears, statistics, batches, config)
    scores, curves = score_weights(model, linears, statistics, batches, None, config, progress=False)
    return profiles_from(linears, config, importance, scores, curves)


def layer_importance(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    statistics: WeightStatistics,
    batches: Iterable[Batch],
    config: LayerAdaptive,
) -> dict[str, float]:
    """The importance of every linear by name, at the granularity of `config`."""
    if config.layer_score == "sensitivity":
        scores = sensitivity(model, linears, batches)
    else:
        scorer = LAYER_SCORERS[config.layer_score]
        scores = {linear.name: scorer(linear, statistics, config.seed) for linear in linears}
    return block_means(scores, list(linears)) if config.granularity == "block" else scores


def weight_need(config: LayerAdaptive) -> WeightNeed:
    """What must be observed for the allocation of `config`, and for its scores."""
    need = LAYER_NEEDS.get(config.layer_score, WeightNeed()) if config.allocation in DATA_RULES else WeightNeed()
    if wants_scores(config):
        need = need | WEIGHT_NEEDS.get(config.weight_score, WeightNeed())
    if config.allocation == "search":
        need = need | WeightNeed(moments=True, output_gradients=True)
    return need


def wants_scores(config: LayerAdaptive) -> bool:
    """Whether all weights are scored first: the OBS pass scores as it goes, but for one threshold over all linears."""
    return config.weight_score != "sparsegpt" or config.allocation == "global"


def looks_at_data(config: LayerAdaptive) -> bool:
    """Whether its scores or its allocation are made of what a pass through the whole model sums."""
    return config.weight_score in DATA_SCORES or config.allocation in DATA_RULES


def score_weights(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    statistics: WeightStatistics,
    batches: Sequence[Batch],
    weights: TokenWeights | None,
    config: LayerAdaptive,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, Curve]]:
    """Scores of all weights and loss curves of all linears, as far as the allocation of `config` wants them; by name.

    Where whole moments are needed, they are summed and used up linear by linear.
    """
    scores: dict[str, Tensor] = {}
    curves: dict[str, Curve] = {}
    for linear in with_moments(model, linears, statistics, batches, weights, weight_need(config), progress):
        if config.allocation == "global":
            scores[linear.name] = weight_scores(linear, statistics, config)
        if config.allocation == "search":
            curves[linear.name] = loss_curve(linear, statistics)
    return scores, curves


def weight_scores(linear: BlockLinear, statistics: WeightStatistics, config: LayerAdaptive) -> Tensor:
    """Scores `[out, in]` of the weights of one linear; what is zero already goes first."""
    found = WEIGHT_SCORERS[config.weight_score](linear, statistics, config.seed)
    mask = mask_of(linear.module)
    return found if mask is None else found.masked_fill(~mask, -torch.inf)


def with_moments(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    statistics: WeightStatistics,
    batches: Sequence[Batch],
    weights: TokenWeights | None,
    need: WeightNeed,
    progress: bool,
) -> Iterator[BlockLinear]:
    """Each linear when all that is needed of it is in `statistics`: the whole moments of one at a time."""
    if not need.moments:
        yield from linears
        return
    for linear, moments in input_moments(model, batches, weights, progress=progress):
        own = statistics.linears[linear.name]
        own.moments = moments
        yield linear
        own.moments = 0.0


def profiles_from(
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    importance: dict[str, float],
    scores: dict[str, Tensor],
    curves: dict[str, Curve],
) -> Profiles:
    """The profiles of these linears from what was found of them, by name; what was not looked for may be missing."""
    return {
        linear.name: profile_of(linear, config, importance, scores.get(linear.name), curves.get(linear.name, ()))
        for linear in linears
    }


def profile_of(
    linear: BlockLinear,
    config: LayerAdaptive,
    importance: dict[str, float],
    scores: Tensor | None,
    curve: Curve,
) -> LinearProfile:
    """That of one linear. What is zero in it already is the least it can have."""
    mask = mask_of(linear.module)
    gone = 0.0 if mask is None else 1 - float(mask.double().mean())
    return LinearProfile(
        shape=linear.shape,
        low=max(config.min_sparsity, gone),
        high=max(config.max_sparsity, gone),
        importance=importance.get(linear.name, 1.0),
        scores=scores,
        weights=effective_weight(linear.module) if config.allocation == "lamp" else None,
        curve=curve,
    )


def whole_blocks(zeros: dict[str, int], unit: int, profiles: dict[str, LinearProfile]) -> dict[str, int]:
    """Multiples of a block, with the same sum to less than one block."""
    counts, carried = {}, 0
    for name, count in zeros.items():
        wanted = count + carried
        counts[name] = min(max(wanted // unit * unit, 0), profiles[name].most // unit * unit)
        carried = wanted - counts[name]
    return counts
