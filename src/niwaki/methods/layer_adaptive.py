"""observe -> score -> allocate -> prune -> repair: the whole of layer-adaptive pruning, read top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import apply_mask_, check_unmerged, mask_of, merge_
from niwaki.allocation.profiles import importance_that_decided, profiles_of
from niwaki.allocation.sparsity import SPARSITY_ALLOCATORS, Profiles, check_budget, towards_uniform
from niwaki.anatomy import BlockLinear, check_filter, check_units, linears_of, weight_of
from niwaki.config import LayerAdaptive
from niwaki.config.layer_adaptive import AUTO, SOLVED
from niwaki.config.patterns import Block, NByM
from niwaki.masks import check_divides, choose
from niwaki.methods.importance_strength import best_strength, strength_passes
from niwaki.methods.scores import Scores
from niwaki.methods.weight_profiles import Scored, score_linears
from niwaki.observe import Batch, Need, Passes, Statistics, TokenWeights, need_of, observe
from niwaki.observe.moments import with_moments
from niwaki.repair.block_reconstruction import reconstruction, reconstruction_passes
from niwaki.repair.least_squares import Optimum, excess, on_mask
from niwaki.repair.reconstruct import reconstruct_
from niwaki.repair.sequential_least_squares import AT_ONCE_PASSES, REFIT_PASSES
from niwaki.results import SiteResult, StageResult
from niwaki.scoring.beside import scores_beside
from niwaki.scoring.layers import LAYER_NEEDS, layer_importance
from niwaki.scoring.rows import row_scale
from niwaki.scoring.weights import WEIGHT_NEEDS, WEIGHT_SCORERS, weight_scores
from niwaki.sparsify.admm import admm_mask
from niwaki.sparsify.obs import obs_factor, obs_prune
from niwaki.train.data import TrainingData
from niwaki.train.recover import recover_


def prune_weights_(
    model: nn.Module,
    config: LayerAdaptive,
    batches: Sequence[Batch],
    training: TrainingData,
    *,
    progress: bool = False,
) -> StageResult:
    """Zero weights of `model` in place, exactly to the budget of `config`; the masks are held from then on.

    Arguments as `niwaki.prune_` has checked them; recovery learns from `training`.

    Raises:
        RequestError: the model is not supported, bounds that cannot meet the budget, a pattern that does not divide a
            linear; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    started, meant = time.perf_counter(), config.resolved()
    linears = linears_of(model)
    check_weights(model, linears, meant)

    # What one pass over the layers can do without.
    dense = merge_(copy.deepcopy(model)) if meant.steps > 1 or meant.recover_epochs else None
    importance: dict[str, float] = {}
    beside: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    weights: TokenWeights | None = None
    passes = Passes()
    for step in range(1, meant.steps + 1):
        sparsity = meant.sparsity * (1 - (1 - step / meant.steps) ** 3)
        targets = meant.repair == "least-squares"
        learns = meant.reconstruct != "none"
        also = Need(token_sizes=targets, output_gradients=meant.compares_rows or learns)
        now = dataclasses.replace(meant, sparsity=sparsity)
        scored = score_linears(model, linears, now, batches, weights, also=also, progress=progress)
        weights = scored.token_weights
        importance = importance or importance_that_decided(meant.rule, scored.profiles)
        beside = beside or scores_beside(linears, scored.statistics)
        if meant.importance_strength == AUTO:  # what the first step finds holds for all
            meant = _with_strength(model, linears, meant, sparsity, scored, batches)
            passes += strength_passes(scored.statistics.rows)
        zeros = _zeros(meant, sparsity, scored.profiles)
        warnings += _prune_(model, dense, linears, batches, zeros, scored, meant, progress)
        refit = AT_ONCE_PASSES if meant.fast else REFIT_PASSES
        passes += scored.passes + Passes(refit * (targets or meant.weight_score in SOLVED))
        passes += reconstruction_passes(meant.reconstruct, len(batches))
        if meant.recover_epochs and dense is not None:
            passes += recover_(model, dense, training, meant, len(batches), step=step, progress=progress)
    return _result(linears, meant, importance, beside, warnings, passes, time.perf_counter() - started)


def check_weights(model: nn.Module, linears: Sequence[BlockLinear], config: LayerAdaptive) -> None:
    """Refuse what cannot be done with these linears.

    Raises:
        RequestError: nothing to prune, a pattern that does not divide a linear, a budget that cannot be met, adapters
            that are merged.
    """
    check_units(model)
    check_filter(model, config)
    check_unmerged(model)
    pattern = config.zero_pattern
    for linear in linears:
        check_divides(linear.shape, pattern, linear.name)
    if not isinstance(pattern, NByM):
        total = sum(linear.size for linear in linears)
        check_budget(profiles_of(linears, config), round(config.sparsity * total))


def _zeros(config: LayerAdaptive, sparsity: float, profiles: Profiles) -> dict[str, int]:
    """The number of zeros of every linear, in all exactly those of `sparsity`."""
    pattern = config.zero_pattern
    if isinstance(pattern, NByM):
        found = {name: profile.size // pattern.m * (pattern.m - pattern.n) for name, profile in profiles.items()}
        return {name: zeros if profiles[name].most else 0 for name, zeros in found.items()}
    # An early step of the ramp asks for no fewer zeros than the bounds and the zeros that are there already.
    least = sum(profile.fewest for profile in profiles.values())
    wanted = max(round(sparsity * sum(profile.size for profile in profiles.values())), least)
    found = SPARSITY_ALLOCATORS[config.rule](profiles, wanted, config.importance_power or 1.0)
    strength = config.importance_strength
    return towards_uniform(found, profiles, strength) if isinstance(strength, float) else found


def _with_strength(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    sparsity: float,
    scored: Scored,
    data: Sequence[Batch],
) -> LayerAdaptive:
    """`config` with the strength that is best for its formula."""
    formula = _zeros(config, sparsity, scored.profiles)
    ranked = dataclasses.replace(config, weight_score="wanda") if config.weight_score in SOLVED else config

    def mask_for(linear: BlockLinear, zeros: int) -> Tensor:
        return _ranked_mask(linear, weight_scores(linear, scored.statistics, ranked), zeros, ranked)

    strength = best_strength(model, linears, formula, scored.profiles, mask_for, data, config.seed)
    return dataclasses.replace(config, importance_strength=strength)


def _ranked_mask(linear: BlockLinear, scores: Tensor, zeros: int, config: LayerAdaptive) -> Tensor:
    """The mask of the highest scores; Wanda compares those of a row."""
    by_row, before = config.weight_score == "wanda", mask_of(linear.module)
    return choose(scores, zeros, config.zero_pattern, linear.name, before=before, by_row=by_row)


def _prune_(
    model: nn.Module,
    dense: nn.Module | None,
    linears: Sequence[BlockLinear],
    data: Sequence[Batch],
    zeros: dict[str, int],
    scored: Scored,
    config: LayerAdaptive,
    progress: bool,
) -> list[str]:
    """Choose the masks, hold them and refit the weights as `config` asks; returns warnings."""
    mask_for = _chooser(zeros, scored, config)
    if config.weight_score not in SOLVED and config.repair == "none":
        for linear in linears:
            apply_mask_(linear.module, mask_for(linear, None)[1])
        return []
    targets = config.repair == "least-squares"
    return reconstruct_(
        model,
        dense,
        data,
        mask_for,
        weights=scored.token_weights if targets else None,
        targets=targets,
        at_once=config.fast,
        then=reconstruction(config.reconstruct, scored.statistics, scored.token_weights, config.seed),
        progress=progress,
    )


_Chooser = Callable[[BlockLinear, Optimum | None], tuple[Tensor, Tensor]]


def _chooser(zeros: dict[str, int], scored: Scored, config: LayerAdaptive) -> _Chooser:
    """Linear and its optimum -> pruned weight and mask, with `zeros`; blocks that do not fit are left to the next one.

    Solves choose and refit at once; other scores are those of the weights as they are. What is repaired has the best
    values that its mask allows.
    """
    pattern, missing = config.zero_pattern, 0

    def sparsify(linear: BlockLinear, best: Optimum | None) -> tuple[Tensor, Tensor]:
        nonlocal missing
        if not (linear.size and config.may_cut(linear.site)):  # a site without units has a bias to refit
            kept = mask_of(linear.module)
            if kept is None:
                kept = torch.ones(linear.shape, dtype=torch.bool, device=weight_of(linear.module).device)
            return (kept if best is None else on_mask(best, kept)), kept
        wanted = min(zeros[linear.name] + missing, linear.size)
        if best is not None and config.weight_score in SOLVED:
            weight, mask = _solved(linear, best, wanted, scored.statistics, config)
        else:
            found = scored.scores.get(linear.name)
            found = weight_scores(linear, scored.statistics, config) if found is None else found
            mask = _ranked_mask(linear, found, wanted, config)
            weight = mask if best is None else on_mask(best, mask)
        missing = wanted - (linear.size - int(mask.sum())) if isinstance(pattern, Block) else 0
        return weight, mask

    return sparsify


def _solved(
    linear: BlockLinear, best: Optimum, zeros: int, statistics: Statistics, config: LayerAdaptive
) -> tuple[Tensor, Tensor]:
    """The weight and the mask of the OBS pass; what ADMM makes of them where that is better."""
    pattern, name, before = config.zero_pattern, linear.name, mask_of(linear.module)
    # Every row is refitted alone, so its scale decides only how many weights it is worth.
    scale = row_scale(statistics.linears[name]) if config.compares_rows else torch.ones(1)
    scale = scale.to(best.weight)[:, None]
    best = dataclasses.replace(best, weight=best.weight * scale)
    target, upper = best.weight.float(), obs_factor(best.factor).float()
    weight, mask = obs_prune(target, upper, zeros, pattern, name, before=before)
    if config.weight_score == "alps":
        moments = (best.factor @ best.factor.T).float()
        other = admm_mask(target, moments, weight, zeros, pattern, name, before=before)
        refitted = on_mask(best, other, weight)
        if excess(best, refitted) <= excess(best, weight):
            return refitted / scale, other
    return (weight if config.repair == "none" else on_mask(best, mask, weight)) / scale, mask


def _result(
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    importance: dict[str, float],
    beside: dict[str, dict[str, float]],
    warnings: list[str],
    passes: Passes,
    seconds: float,
) -> StageResult:
    """What was done. More zeros than asked, where n:m met zeros that were there, are a warning."""
    layers = []
    for linear in linears:
        mask = mask_of(linear.module)
        kept = linear.size if mask is None else int(mask.sum())
        found = SiteResult(linear.name, "linear", importance[linear.name], kept, linear.size)
        layers.append(dataclasses.replace(found, other_scores=beside.get(linear.name, {})))
    total = sum(layer.total for layer in layers)
    zeros = sum(layer.total - layer.kept for layer in layers)
    achieved, asked = zeros / total, config.sparsity
    drawn = config.importance_strength
    strength = {} if drawn is None else {"importance_strength": drawn}
    if isinstance(config.zero_pattern, NByM):  # a sparsity of what may be cut
        asked *= sum(linear.size for linear in linears if config.may_cut(linear.site)) / total
    if isinstance(config.zero_pattern, NByM) and zeros > round(asked * total):
        warnings = [
            *warnings,
            f"sparsity is {achieved:.4f}, not the {asked:g} of {config.pattern}: zeros that the model held stay zero",
        ]
    return StageResult(
        name="layer-adaptive",
        kind="sparsity",
        requested=asked,
        achieved=achieved,
        seconds=seconds,
        forward_passes=passes.forward,
        backward_passes=passes.backward,
        layers=tuple(layers),
        warnings=tuple(warnings),
        details={"zeros": zeros, "weights": total} | strength,
    )


def score_weights(
    model: nn.Module, batches: Sequence[Batch], config: LayerAdaptive, *, progress: bool = False
) -> Scores:
    """The scores of a model's linears as `config` asks: see `niwaki.score`; the units of a linear are its outputs.

    Raises:
        RequestError: no batches, or none with labels for a score that needs them. WorkError: a statistic is not finite.
    """
    linears = linears_of(model)
    need = need_of(LAYER_NEEDS, config.layer_score or "") | need_of(WEIGHT_NEEDS, config.weight_score)
    need = need | Need(token_sizes=need.moments)
    statistics = observe(model, batches, need, seed=config.seed, progress=progress)
    pairs = ((linear, statistics) for linear in linears)
    if need.moments:
        pairs = with_moments(model, statistics, batches, statistics.token_weights, progress=progress)
    found = Scores()
    for linear, own in pairs:
        scores = WEIGHT_SCORERS[config.weight_score](linear, own, config.seed).double()
        found[linear.name] = scores.mean(1).tolist()
    if config.layer_score:
        found.importance = layer_importance(model, linears, statistics, batches, config)
    return found
