"""observe -> score -> allocate -> prune -> repair: the whole of layer-adaptive pruning, read top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from niwaki.allocation.sparsity import SPARSITY_ALLOCATORS, Share, Shares, check_budget
from niwaki.anatomy import BlockLinear, check_units, linears_of
from niwaki.config import LayerAdaptive
from niwaki.errors import RequestError
from niwaki.lora import check_model, effective_weight, hold_, mask_of, merge_
from niwaki.masks import Block, NByM, Unstructured, check_divides, choose
from niwaki.observe import Batch
from niwaki.observe_linears import WeightNeed, WeightStatistics, observe_linears
from niwaki.observe_moments import input_moments
from niwaki.observe_tokens import TokenWeights, over_mean
from niwaki.repair import REFIT_PASSES, recover_
from niwaki.repair.bottom_up import DAMPING
from niwaki.repair.obs import obs_factor, obs_prune
from niwaki.repair.reconstruct import reconstruct_
from niwaki.results import SiteResult, StageResult
from niwaki.scoring.layers import LAYER_NEEDS, LAYER_SCORERS, block_means
from niwaki.scoring.sensitivity import ROWS, sensitivity
from niwaki.scoring.weights import WEIGHT_NEEDS, WEIGHT_SCORERS
from niwaki.solve import damp

CURVE = (0.5, 0.7, 0.8, 0.9, 0.96)
"""Sparsities at which `search` measures what a linear loses."""
LAYER_RULES = ("inverse-importance", "owl")
DATA_RULES = (*LAYER_RULES, "search")
"""Allocations that look at calibration data. For any other, all linears are alike: their importance is not measured."""
DATA_SCORES = ("wanda", "gradient")
"""Weight scores made of what one pass through the whole model sums; those of `sparsegpt` are summed layer by layer."""


def prune_layers_(
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
    batches = list(data)
    linears, pattern = linears_of(model), config.zero_pattern
    for linear in linears:
        check_divides(linear.shape, pattern, linear.name)
    total = sum(linear.size for linear in linears)
    if not isinstance(pattern, NByM):
        check_budget({x.name: _share(x, config, {}, None, ()) for x in linears}, round(config.sparsity * total))
    if not batches:
        raise RequestError("data must hold at least one batch, got none")

    # What one pass over the layers can do without.
    dense = merge_(copy.deepcopy(model)) if config.steps > 1 or config.recover_epochs else None
    importance: dict[str, float] = {}
    warnings: list[str] = []
    weights: TokenWeights | None = None
    forwards = backwards = 0.0
    for step in range(1, config.steps + 1):
        sparsity = config.sparsity * (1 - (1 - step / config.steps) ** 3)
        need = _need(config)
        weigh = weights is None and (need.moments or config.repair == "least-squares")
        statistics = WeightStatistics()
        if weigh or config.weight_score in DATA_SCORES or config.allocation in DATA_RULES:
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
        scores, curves = _score(model, linears, statistics, batches, weights, config, progress)
        forwards += float(need.moments)
        zeros = _zeros(linears, config, sparsity, found, scores, curves)
        obs = config.weight_score == "sparsegpt"
        masks = None
        if not obs:
            by_row = config.weight_score == "wanda" and config.allocation == "uniform"
            masks = {
                x.name: choose(scores[x.name], zeros[x.name], pattern, x.name, by_row=by_row and not _held(x))
                for x in linears
            }
        if not obs and config.repair == "none":
            for linear in linears:
                hold_(linear.module, (masks or {})[linear.name])
            continue
        targets = config.repair == "least-squares"
        warnings += reconstruct_(
            model,
            dense,
            batches,
            zeros,
            pattern,
            masks=masks,
            weights=weights if targets else None,
            targets=targets,
            progress=progress,
        )
        forwards += REFIT_PASSES
    if config.recover_epochs and dense is not None:
        passes = recover_(model, dense, list(training_data or batches), config, progress=progress) / len(batches)
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


def _need(config: LayerAdaptive) -> WeightNeed:
    need = LAYER_NEEDS.get(config.layer_score, WeightNeed()) if config.allocation in DATA_RULES else WeightNeed()
    if _wants_scores(config):
        need = need | WEIGHT_NEEDS.get(config.weight_score, WeightNeed())
    if config.allocation == "search":
        need = need | WeightNeed(moments=True, output_gradients=True)
    return need


def _wants_scores(config: LayerAdaptive) -> bool:
    return config.weight_score != "sparsegpt" or config.allocation == "global"


def _held(linear: BlockLinear) -> bool:
    return mask_of(linear.module) is not None


Curve = tuple[tuple[float, float], ...]
"""Pairs of sparsity and loss."""


def _score(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    statistics: WeightStatistics,
    batches: Sequence[Batch],
    weights: TokenWeights | None,
    config: LayerAdaptive,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, Curve]]:
    """Scores of all weights and loss curves of all linears, as far as `config` wants them; by name.

    Where whole moments are needed, they are summed and used up linear by linear.
    """
    scores: dict[str, Tensor] = {}
    curves: dict[str, Curve] = {}

    def score(linear: BlockLinear) -> None:
        if _wants_scores(config):
            found = WEIGHT_SCORERS[config.weight_score](linear, statistics, config.seed)
            mask = mask_of(linear.module)
            # What is zero already goes first.
            scores[linear.name] = found if mask is None else found.masked_fill(~mask, -torch.inf)
        if config.allocation == "search":
            curves[linear.name] = loss_curve(linear, statistics)

    for linear in _filled(model, linears, statistics, batches, weights, _need(config), progress):
        score(linear)
    return scores, curves


def _filled(
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


def score_layers(
    model: nn.Module, data: Iterable[Batch], config: LayerAdaptive, *, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Linear name -> its `importance`, and `lowest`, `median`, `mean` and `highest` of the scores of its weights.

    Raises:
        RequestError: no batches, or none with labels for a score that needs them. WorkError: a statistic is not finite.
    """
    batches, linears = list(data), linears_of(model)
    need = LAYER_NEEDS.get(config.layer_score, WeightNeed()) | WEIGHT_NEEDS.get(config.weight_score, WeightNeed())
    need = need | WeightNeed(token_sizes=need.moments)
    statistics = observe_linears(model, batches, need, seed=config.seed, progress=progress)
    importance = layer_importance(model, linears, statistics, batches, config)
    weights = over_mean(statistics.token_sizes) if need.moments else None
    found = {}
    for linear in _filled(model, linears, statistics, batches, weights, need, progress):
        scores = WEIGHT_SCORERS[config.weight_score](linear, statistics, config.seed).double()
        found[linear.name] = {
            "importance": importance[linear.name],
            "lowest": float(scores.min()),
            "median": float(scores.median()),
            "mean": float(scores.mean()),
            "highest": float(scores.max()),
        }
    return found


def _share(
    linear: BlockLinear,
    config: LayerAdaptive,
    importance: dict[str, float],
    scores: Tensor | None,
    curve: Curve,
) -> Share:
    mask = mask_of(linear.module)
    gone = 0.0 if mask is None else 1 - float(mask.double().mean())
    return Share(
        shape=linear.shape,
        low=max(config.min_sparsity, gone),
        high=max(config.max_sparsity, gone),
        importance=importance.get(linear.name, 1.0),
        scores=scores,
        weights=effective_weight(linear.module) if config.allocation == "lamp" else None,
        curve=curve,
    )


def _shares(
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    importance: dict[str, float],
    scores: dict[str, Tensor],
    curves: dict[str, Curve],
) -> Shares:
    return {
        linear.name: _share(linear, config, importance, scores.get(linear.name), curves.get(linear.name, ()))
        for linear in linears
    }


def shares_of(model: nn.Module, config: LayerAdaptive, data: Iterable[Batch]) -> Shares:
    """What the allocation of `config` knows of every linear as `model` stands; only `DATA_RULES` look at `data`.

    Raises:
        RequestError: no batches for a rule that needs them. WorkError: a statistic is not finite.
    """
    linears = linears_of(model)
    if config.allocation not in DATA_RULES:
        magnitudes = {linear.name: effective_weight(linear.module).abs() for linear in linears}
        return _shares(linears, config, {}, magnitudes, {})
    batches = list(data)
    statistics = observe_linears(model, batches, _need(config), seed=config.seed)
    importance = layer_importance(model, linears, statistics, batches, config)
    scores, curves = _score(model, linears, statistics, batches, None, config, progress=False)
    return _shares(linears, config, importance, scores, curves)


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
    shares = _shares(linears, config, importance, scores, curves)
    # An early step of the ramp asks for no fewer zeros than the bounds and the zeros that are there already.
    wanted = max(wanted, sum(share.fewest for share in shares.values()))
    zeros = SPARSITY_ALLOCATORS[config.allocation](shares, wanted, config.importance_power)
    return whole_blocks(zeros, pattern.rows * pattern.columns, shares) if isinstance(pattern, Block) else zeros


def whole_blocks(zeros: dict[str, int], unit: int, shares: dict[str, Share]) -> dict[str, int]:
    """Multiples of a block, with the same sum to less than one block."""
    counts, carried = {}, 0
    for name, count in zeros.items():
        wanted = count + carried
        counts[name] = min(max(wanted // unit * unit, 0), shares[name].most // unit * unit)
        carried = wanted - counts[name]
    return counts


def loss_curve(linear: BlockLinear, statistics: WeightStatistics) -> Curve:
    """(sparsity, loss) pairs of one linear pruned alone: `1/2 sum_i G_ii (D H D^T)_ii`, D what the OBS pass changes.

    H is the second moment of the input and G that of the loss gradient at the output, of which the diagonal is taken:
    the Kronecker-factored Fisher (Martens & Grosse, 2015), which makes the curves of all linears comparable.
    """
    sums = statistics.linears[linear.name]
    moments = torch.as_tensor(sums.moments).double() / statistics.tokens
    upper = obs_factor(damp(moments, linear.name, DAMPING).factor).float()
    gradients = torch.as_tensor(sums.gradient_squares) / statistics.rows
    weight, moments = effective_weight(linear.module).float(), moments.float()

    def loss(change: Tensor) -> float:
        return 0.5 * float(gradients @ ((change @ moments) * change).sum(1))

    points = [(0.0, 0.0)]
    for sparsity in CURVE:
        pruned, _ = obs_prune(weight, upper, round(sparsity * linear.size), Unstructured(), linear.name)
        points.append((sparsity, loss(weight - pruned)))
    return (*points, (1.0, loss(weight)))


def _result(linear: BlockLinear, importance: float) -> SiteResult:
    mask = mask_of(linear.module)
    kept = linear.size if mask is None else int(mask.sum())
    return SiteResult(linear.name, "linear", importance, kept, linear.size)
