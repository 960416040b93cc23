"""observe -> score -> allocate -> prune -> repair: the whole of structured pruning, read top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from typing import Any, overload

import torch
from rich.console import Console
from torch import Tensor, nn

from niwaki.allocation import ALLOCATORS
from niwaki.anatomy import Site, sites_of
from niwaki.budget import Budget, bounds_of, budget_of
from niwaki.config import LayerAdaptive, Structured
from niwaki.data import mean_length
from niwaki.drop import check_drop, drop_layers_
from niwaki.errors import RequestError
from niwaki.evaluate import speedup
from niwaki.layer_adaptive import prune_layers_, score_layers
from niwaki.lora import bias_of, check_model, merge_
from niwaki.observe import Batch, TokenWeights, observe
from niwaki.observe_moments import sites_with_moments
from niwaki.observe_tokens import token_weights
from niwaki.repair import REFIT_PASSES, recover_, refit_
from niwaki.results import SiteResult, StageResult
from niwaki.scoring import need_of, score_sites
from niwaki.surgery import Plan, cut_, plan_table
from niwaki.surgery.plan import shares

LATENCY_TOLERANCE = 0.05
"""A latency budget is met when the measured ratio is within this share of the one that was asked."""
_CORRECTIONS = 6


def prune_(
    model: nn.Module,
    config: Structured | LayerAdaptive,
    data: Iterable[Batch],
    *,
    training_data: Iterable[Batch] | None = None,
    progress: bool = False,
) -> StageResult:
    """Prune `model` in place to the budget of `config` and say what was done.

    `model` is a supported `PreTrainedModel` or a `PeftModel` around one, whose LoRA stays attached; `data` an iterable
    of batches (dicts of tensors with `input_ids`, and `attention_mask` where there is padding). Recovery trains on
    `training_data`, on `data` where there are none.

    Raises:
        RequestError: the model is not supported, or the budget is below what the minimum widths allow; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    if isinstance(config, LayerAdaptive):
        return prune_layers_(model, config, data, training_data=training_data, progress=progress)
    started = time.perf_counter()
    check_model(model)
    batches = list(data)
    by_head = config.by_query_head
    before = {site.name: site.units for site in sites_of(model, by_head)}
    budget = checked_budget(model, config, mean_length(batches))
    dense = merge_(copy.deepcopy(model))
    weights: TokenWeights | None = None
    importance: dict[str, float] = {}
    forwards = backwards = 0.0
    if config.drop_layers:
        drop_layers_(model, batches, config.drop_layers, progress=progress)
        forwards += 1.0
    kept = {site.name: torch.arange(site.units) for site in sites_of(model, by_head)}
    for step in range(1, config.steps + 1):
        sites = sites_of(model, by_head)
        scores, passes = _scores(model, sites, batches, config, progress)
        forwards, backwards = forwards + passes[0], backwards + passes[1]
        importance = importance or shares(scores)
        plan = _plan(model, dense, scores, budget, 1.0 - (1.0 - budget.share) * step / config.steps, config)
        if progress:
            Console(stderr=True).print(plan_table(sites, scores, plan))
        cut_(model, plan, by_head)
        kept = {name: kept[name][units] for name, units in plan.items()}
        if config.repair != "none":
            if weights is None:
                weights = token_weights(dense, batches, seed=config.seed, progress=progress)
                forwards, backwards = forwards + 1.0, backwards + 1.0
            refit_(model, dense, batches, kept, config.repair, weights=weights, query_heads=by_head, progress=progress)
            forwards += REFIT_PASSES
    if config.recover_epochs:
        passes = recover_(model, dense, list(training_data or batches), config, progress=progress) / len(batches)
        # The dense model runs forward beside the one that is trained; counted in passes over the calibration data.
        forwards, backwards = forwards + 2 * passes, backwards + passes

    after = sites_of(model, by_head)
    achieved = budget.kept(after)
    warnings = []
    if budget.kind == "latency":
        achieved = _measured_ratio(dense, merge_(copy.deepcopy(model)), config)
        if abs(achieved / budget.share - 1) > LATENCY_TOLERANCE:
            warnings.append(f"latency: {budget.share:g} of dense was asked, {achieved:.3f} was measured at the end")
    layers = tuple(
        SiteResult(site.name, site.kind, importance[site.name], site.units, before[site.name]) for site in after
    )
    return StageResult(
        name="structured",
        kind=budget.kind,
        requested=budget.share,
        achieved=achieved,
        seconds=time.perf_counter() - started,
        forward_passes=forwards,
        backward_passes=backwards,
        layers=layers,
        warnings=tuple(warnings),
    )


def checked_budget(model: nn.Module, config: Structured, length: float) -> Budget:
    """The budget that `config` asks for; `length` is the mean number of real tokens of a calibration row.

    Raises:
        RequestError: what `config` asks of the model cannot be met.
    """
    sites = sites_of(model, config.by_query_head)
    budget = budget_of(model, config, length)
    budget.check(bounds_of(sites, budget, config))
    if config.repair == "bias" and all(bias_of(site.output) is None for site in sites):
        rule = "repair must be none or least-squares for a model whose output projections have no bias"
        raise RequestError(f"{rule}, got 'bias'")
    if config.drop_layers:
        check_drop(sites, budget, config.drop_layers)
    return budget


def _scores(
    model: nn.Module, sites: list[Site], data: list[Batch], config: Structured, progress: bool
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Scores of all units by site, and the forward and backward passes over the data that they took."""
    need = need_of(config.head_score, config.neuron_score)
    by_head = config.by_query_head
    seen = observe(model, data, need, query_heads=by_head, seed=config.seed, progress=progress)
    ready = sites_with_moments(model, sites, seen, data, need, progress=progress)
    scores = score_sites(ready, seen, config.head_score, config.neuron_score, config.seed)
    return scores, (seen.forward_passes + need.moments, seen.backward_passes)


def _plan(
    model: nn.Module, dense: nn.Module, scores: dict[str, Tensor], budget: Budget, share: float, config: Structured
) -> Plan:
    """The units to keep for `share` of the budget. A plan on measured latencies is itself timed, and corrected."""
    bounds = bounds_of(sites_of(model, config.by_query_head), budget, config)

    def plan_for(target: float) -> Plan:
        return ALLOCATORS[config.allocation](scores, bounds, budget.left_for_sites(target))

    if budget.kind != "latency":
        return plan_for(share)
    target, best, miss = share, plan_for(share), float("inf")
    for _ in range(_CORRECTIONS):
        plan = plan_for(target)
        candidate = merge_(copy.deepcopy(model))
        cut_(candidate, plan)
        ratio = _measured_ratio(dense, candidate, config)
        if abs(ratio / share - 1) < miss:
            best, miss = plan, abs(ratio / share - 1)
        if miss < LATENCY_TOLERANCE / 3:
            break
        target *= share / ratio
    return best


def _measured_ratio(dense: nn.Module, plain: nn.Module, config: Structured) -> float:
    """Measured latency of a model without adapters over that of `dense`."""
    return 1 / speedup(dense, plain, config.latency_batch_size, config.latency_length)


@overload
def score(
    model: nn.Module, data: Iterable[Batch], config: Structured | None = None, *, progress: bool = False
) -> dict[str, list[float]]: ...
@overload
def score(
    model: nn.Module, data: Iterable[Batch], config: LayerAdaptive, *, progress: bool = False
) -> dict[str, dict[str, float]]: ...
def score(
    model: nn.Module, data: Iterable[Batch], config: Structured | LayerAdaptive | None = None, *, progress: bool = False
) -> Any:
    """Importance only: higher is more important. Nothing is pruned.

    As `Structured` scores: site name -> one score per unit. As `LayerAdaptive` does: see `score_layers`.
    """
    if isinstance(config, LayerAdaptive):
        check_model(model)
        return score_layers(model, data, config, progress=progress)
    chosen = config or Structured(flops=1.0)
    check_model(model)
    sites = sites_of(model, chosen.by_query_head)
    scores, _ = _scores(model, sites, list(data), chosen, progress)
    return {site.name: scores[site.name].tolist() for site in sites}
