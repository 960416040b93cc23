"""observe -> score -> allocate -> prune -> repair: the whole of structured pruning, read top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable

import torch
from rich.console import Console
from torch import Tensor, nn

from niwaki.adapters import bias_of, check_model, merge_
from niwaki.allocation import ALLOCATORS
from niwaki.allocation.budget import Budget, bounds_of, budget_of
from niwaki.anatomy import Site, accepts_of, sites_of
from niwaki.config import Structured
from niwaki.data import checked_batches, mean_length
from niwaki.errors import RequestError
from niwaki.evaluate import speedup
from niwaki.methods.drop_layers import check_drop, drop_layers_
from niwaki.observe.moments import sites_with_moments
from niwaki.observe.tokens import token_weights
from niwaki.observe.units import Batch, TokenWeights, observe
from niwaki.repair.refit import refit_
from niwaki.repair.sequential_least_squares import REFIT_PASSES
from niwaki.results import SiteResult, StageResult
from niwaki.scoring import need_of, score_sites
from niwaki.surgery import Plan, cut_, plan_table
from niwaki.surgery.plan import importances
from niwaki.train.recover import recover_, recovery_data

LATENCY_TOLERANCE = 0.05
"""A latency budget is met when the measured ratio is within this share of the one that was asked."""
_CORRECTIONS = 6


def prune_units_(
    model: nn.Module,
    config: Structured,
    data: Iterable[Batch],
    *,
    training_data: Iterable[Batch] | None = None,
    progress: bool = False,
) -> StageResult:
    """Remove heads and neurons of `model` in place, to the budget of `config`. Arguments as those of `niwaki.prune_`.

    Raises:
        RequestError: the model is not supported, or the budget is below what the minimum widths allow; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    started = time.perf_counter()
    check_model(model)
    batches = checked_batches(accepts_of(model), data)
    recovery = recovery_data(model, config, training_data, batches)
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
        importance = importance or importances(scores)
        plan = _plan(model, dense, scores, budget, 1.0 - (1.0 - budget.fraction) * step / config.steps, config)
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
        passes = recover_(model, dense, recovery, config, progress=progress) / len(batches)
        # The dense model runs forward beside the one that is trained; counted in passes over the calibration data.
        forwards, backwards = forwards + 2 * passes, backwards + passes

    after = sites_of(model, by_head)
    achieved = budget.kept(after)
    warnings = []
    if budget.kind == "latency":
        achieved = _measured_ratio(dense, merge_(copy.deepcopy(model)), config)
        if abs(achieved / budget.fraction - 1) > LATENCY_TOLERANCE:
            warnings.append(f"latency: {budget.fraction:g} of dense was asked, {achieved:.3f} was measured at the end")
    layers = tuple(
        SiteResult(site.name, site.kind, importance[site.name], site.units, before[site.name]) for site in after
    )
    return StageResult(
        name="structured",
        kind=budget.kind,
        requested=budget.fraction,
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


def score_units(
    model: nn.Module, data: Iterable[Batch], config: Structured, *, progress: bool = False
) -> dict[str, list[float]]:
    """Site name -> one score per unit, as `Structured` scores; see `niwaki.score`."""
    check_model(model)
    batches = checked_batches(accepts_of(model), data)
    sites = sites_of(model, config.by_query_head)
    scores, _ = _scores(model, sites, batches, config, progress)
    return {site.name: scores[site.name].tolist() for site in sites}
