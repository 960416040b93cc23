"""observe -> score -> allocate -> prune -> repair: the whole of layer-adaptive pruning, read top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from functools import partial

from torch import Tensor, nn

from niwaki.adapters import apply_mask_, check_model, mask_of, merge_
from niwaki.allocation.curves import (
    DATA_RULES,
    Curve,
    layer_importance,
    looks_at_data,
    profile_of,
    profiles_from,
    score_weights,
    weight_need,
    weight_scores,
    whole_blocks,
    with_moments,
)
from niwaki.allocation.sparsity import SPARSITY_ALLOCATORS, check_budget
from niwaki.anatomy import BlockLinear, accepts_of, check_units, linears_of
from niwaki.config import LayerAdaptive
from niwaki.data import checked_batches
from niwaki.masks import Block, NByM, check_divides, choose
from niwaki.observe.linears import WeightNeed, WeightStatistics, observe_linears
from niwaki.observe.tokens import over_mean
from niwaki.observe.units import Batch, TokenWeights
from niwaki.repair.reconstruct import reconstruct_
from niwaki.repair.sequential_least_squares import REFIT_PASSES
from niwaki.results import SiteResult, StageResult
from niwaki.scoring.layers import LAYER_NEEDS
from niwaki.scoring.sensitivity import ROWS
from niwaki.scoring.weights import WEIGHT_NEEDS, WEIGHT_SCORERS
from niwaki.train.recover import recover_, recovery_data


def prune_weights_(
    model: nn.Module,
    config: LayerAdaptive,
    data: Iterable[Batch],
    *,
    training_data: Iterable[Batch] | None = None,
    progress: bool = False,
) -> StageResult:
    """Zero weights of `model` in place, exactly to the budget of `config`; the masks are held from then on.

    Arguments as those of `niwaki.prune_`.

    Raises:
        RequestError: the model is not supported, bounds that cannot meet the budget, a pattern that does not divide a
            linear; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    started = time.perf_counter()
    check_model(model)
    check_units(model)
    batches = checked_batches(accepts_of(model), data)
    recovery = recovery_data(model, config, training_data, batches)
    linears, pattern = linears_of(model), config.zero_pattern
    for linear in linears:
        check_divides(linear.shape, pattern, linear.name)
    total = sum(linear.size for linear in linears)
    if not isinstance(pattern, NByM):
        check_budget({x.name: profile_of(x, config, {}, None, ()) for x in linears}, round(config.sparsity * total))

    # What one pass over the layers can do without.
    dense = merge_(copy.deepcopy(model)) if config.steps > 1 or config.recover_epochs else None
    importance: dict[str, float] = {}
    warnings: list[str] = []
    weights: TokenWeights | None = None
    forwards = backwards = 0.0
    for step in range(1, config.steps + 1):
        sparsity = config.sparsity * (1 - (1 - step / config.steps) ** 3)
        need = weight_need(config)
        weigh = weights is None and (need.moments or config.repair == "least-squares")
        statistics = WeightStatistics()
        if weigh or looks_at_data(config):
            statistics = observe_linears(
                model, batches, need | WeightNeed(token_sizes=weigh), seed=config.seed, progress=progress
            )
            forwards, backwards = forwards + statistics.forward_passes, backwards + statistics.backward_passes
        found = dict.fromkeys((linear.name for linear in linears), 1.0)
        if config.allocation in DATA_RULES:
            found = layer_importance(model, linears, statistics, batches, config)
            if config.layer_score == "sensitivity":
                forwards += 2.0 * len(linears) * min(ROWS / statistics.rows, 1.0)
        importance = importance or found
        if weigh:
            weights = over_mean(statistics.token_sizes)
        scores, curves = score_weights(model, linears, statistics, batches, weights, config, progress)
        forwards += float(need.moments)
        zeros = _zeros(linears, config, sparsity, found, scores, curves)
        mask_for = partial(_mask_for, zeros=zeros, scores=scores, statistics=statistics, config=config)
        obs = config.weight_score == "sparsegpt"
        if not obs and config.repair == "none":
            for linear in linears:
                apply_mask_(linear.module, mask_for(linear))
            continue
        targets = config.repair == "least-squares"
        warnings += reconstruct_(
            model,
            dense,
            batches,
            zeros,
            pattern,
            mask_for=None if obs else mask_for,
            weights=weights if targets else None,
            targets=targets,
            progress=progress,
        )
        forwards += REFIT_PASSES
    if config.recover_epochs and dense is not None:
        passes = recover_(model, dense, recovery, config, progress=progress) / len(batches)
        forwards, backwards = forwards + 2 * passes, backwards + passes

    layers = tuple(_result(linear, importance[linear.name]) for linear in linears_of(model))
    return StageResult(
        name="layer-adaptive",
        kind="sparsity",
        requested=config.sparsity,
        achieved=sum(layer.total - layer.kept for layer in layers) / total,
        seconds=time.perf_counter() - started,
        forward_passes=forwards,
        backward_passes=backwards,
        layers=layers,
        warnings=tuple(warnings),
        details={"zeros": sum(layer.total - layer.kept for layer in layers), "weights": total},
    )


def _mask_for(
    linear: BlockLinear,
    zeros: dict[str, int],
    scores: dict[str, Tensor],
    statistics: WeightStatistics,
    config: LayerAdaptive,
) -> Tensor:
    """The mask of one linear by the scores of its weights as they are; Wanda's compare within a row of the output."""
    found = scores[linear.name] if linear.name in scores else weight_scores(linear, statistics, config)
    by_row = config.weight_score == "wanda" and config.allocation == "uniform" and mask_of(linear.module) is None
    return choose(found, zeros[linear.name], config.zero_pattern, linear.name, by_row=by_row)


def score_linears(
    model: nn.Module, data: Iterable[Batch], config: LayerAdaptive, *, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Linear name -> its `importance`, and `lowest`, `median`, `mean` and `highest` of the scores of its weights.

    Raises:
        RequestError: no batches, or none with labels for a score that needs them. WorkError: a statistic is not finite.
    """
    check_model(model)
    batches, linears = checked_batches(accepts_of(model), data), linears_of(model)
    need = LAYER_NEEDS.get(config.layer_score, WeightNeed()) | WEIGHT_NEEDS.get(config.weight_score, WeightNeed())
    need = need | WeightNeed(token_sizes=need.moments)
    statistics = observe_linears(model, batches, need, seed=config.seed, progress=progress)
    importance = layer_importance(model, linears, statistics, batches, config)
    weights = over_mean(statistics.token_sizes) if need.moments else None
    found = {}
    for linear in with_moments(model, linears, statistics, batches, weights, need, progress):
        scores = WEIGHT_SCORERS[config.weight_score](linear, statistics, config.seed).double()
        found[linear.name] = {
            "importance": importance[linear.name],
            "lowest": float(scores.min()),
            "median": float(scores.median()),
            "mean": float(scores.mean()),
            "highest": float(scores.max()),
        }
    return found


def _zeros(
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    sparsity: float,
    importance: dict[str, float],
    scores: dict[str, Tensor],
    curves: dict[str, Curve],
) -> dict[str, int]:
    """The number of zeros of every linear, in all exactly those of `sparsity` (to one block of weights)."""
    pattern = config.zero_pattern
    if isinstance(pattern, NByM):
        return {linear.name: linear.size // pattern.m * (pattern.m - pattern.n) for linear in linears}
    wanted = round(sparsity * sum(linear.size for linear in linears))
    profiles = profiles_from(linears, config, importance, scores, curves)
    # An early step of the ramp asks for no fewer zeros than the bounds and the zeros that are there already.
    wanted = max(wanted, sum(profile.fewest for profile in profiles.values()))
    zeros = SPARSITY_ALLOCATORS[config.allocation](profiles, wanted, config.importance_power)
    return whole_blocks(zeros, pattern.rows * pattern.columns, profiles) if isinstance(pattern, Block) else zeros


def _result(linear: BlockLinear, importance: float) -> SiteResult:
    mask = mask_of(linear.module)
    kept = linear.size if mask is None else int(mask.sum())
    return SiteResult(linear.name, "linear", importance, kept, linear.size)
