"""observe -> score -> allocate -> prune -> repair: the whole of structured pruning, read top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import bias_of, merge_
from niwaki.allocation import ALLOCATORS
from niwaki.allocation.budget import Budget, bounds_of, budget_of
from niwaki.anatomy import Site, check_filter, linears_of, sites_of
from niwaki.config import Structured
from niwaki.data import mean_length
from niwaki.errors import RequestError
from niwaki.evaluate import speedup
from niwaki.export import in_engine
from niwaki.methods.drop_layers import check_drop, drop_layers_
from niwaki.methods.scores import Scores
from niwaki.observe import Batch, Need, Passes, TokenWeights, need_of, observe
from niwaki.processes import from_first
from niwaki.progress import show
from niwaki.repair.block_reconstruction import reconstruction, reconstruction_passes
from niwaki.repair.refit import refit_
from niwaki.repair.sequential_least_squares import REFIT_PASSES
from niwaki.results import SiteResult, StageResult
from niwaki.scoring.beside import scores_beside
from niwaki.scoring.units import UNIT_NEEDS, score_units
from niwaki.surgery import Plan, cut_, plan_table
from niwaki.surgery.plan import importances
from niwaki.train.data import TrainingData
from niwaki.train.recover import recover_

LATENCY_TOLERANCE = 0.05
"""A latency budget is met when the measured ratio is within this share of the one that was asked."""
_CORRECTIONS = 6


def prune_units_(
    model: nn.Module,
    config: Structured,
    batches: Sequence[Batch],
    training: TrainingData,
    *,
    progress: bool = False,
) -> StageResult:
    """Remove heads and neurons of `model` in place, to the budget of `config`.

    Arguments as `niwaki.prune_` has checked them; recovery learns from `training`.

    Raises:
        RequestError: the model is not supported, or the budget is below what the minimum widths allow; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    started, by_head = time.perf_counter(), config.by_query_head
    before = {site.name: site.units for site in sites_of(model, by_head)}
    budget = checked_budget(model, config, mean_length(batches))
    dense, timed = _dense(model, config)
    weights: TokenWeights | None = None
    importance, passes, first, beside = dict[str, float](), Passes(), dict[str, Tensor](), dict[str, dict[str, float]]()
    if config.drop_layers:
        seen = drop_layers_(model, batches, config.drop_layers, config.seed, progress=progress)
        weights, passes = seen.token_weights, passes + seen.passes
    kept = {site.name: torch.arange(site.units) for site in sites_of(model, by_head)}
    for step in range(1, config.steps + 1):
        sites = sites_of(model, by_head)
        weigh = weights is None and config.repair != "none"
        need = need_of(UNIT_NEEDS, config.head_score, config.neuron_score)
        need = need | Need(token_sizes=weigh, output_gradients=config.reconstruct != "none")
        seen = observe(model, batches, need, query_heads=by_head, seed=config.seed, progress=progress)
        scores = score_units(model, sites, seen, batches, config, progress=progress)
        weights = seen.token_weights if weigh else weights
        passes += seen.passes + Passes(float(need.moments))
        importance, first = importance or importances(scores), first or scores
        beside = beside or scores_beside(linears_of(model), seen)
        fraction = 1.0 - (1.0 - budget.fraction) * step / config.steps
        plan = _plan(model, timed, sites, scores, budget, fraction, config)
        show(plan_table(sites, scores, plan), progress)
        cut_(model, plan, by_head)
        kept = {name: kept[name][units] for name, units in plan.items()}
        if config.repair != "none":
            refit_(model, dense, batches, kept, config.repair, weights=weights, query_heads=by_head,
                   then=reconstruction(config.reconstruct, seen, weights, config.seed), progress=progress)  # fmt: skip
            passes += Passes(REFIT_PASSES) + reconstruction_passes(config.reconstruct, len(batches))
        if config.recover_epochs:
            passes += recover_(model, dense, training, config, len(batches), step=step, progress=progress)
    achieved, warnings = _achieved(model, timed, budget, config)
    return StageResult(
        name="structured",
        kind=budget.kind,
        requested=budget.fraction,
        achieved=achieved,
        seconds=time.perf_counter() - started,
        forward_passes=passes.forward,
        backward_passes=passes.backward,
        layers=tuple(_left(x, importance, before, first, kept, beside) for x in sites_of(model, by_head)),
        warnings=warnings,
    )


def _dense(model: nn.Module, config: Structured) -> tuple[nn.Module, nn.Module]:
    """A copy of the model without adapters, and that copy where its latency is to be measured, if it is."""
    dense = merge_(copy.deepcopy(model))
    return dense, in_engine(dense, config.latency_engine) if config.latency is not None else dense


def _left(
    site: Site,
    importance: dict[str, float],
    before: dict[str, int],
    scores: dict[str, Tensor],
    kept: Plan,
    beside: dict[str, dict[str, float]],
) -> SiteResult:
    """What is left of a site; of heads one by one, while neurons are too many for that."""
    heads = {"scores": scores, "units": kept} if site.kind == "attention" else {}
    one_by_one = {name: tuple(values[site.name].tolist()) for name, values in heads.items()}
    others = beside.get(site.output_name, {})
    name, total = site.name, before[site.name]
    return SiteResult(name, site.kind, importance[name], site.units, total, **one_by_one, other_scores=others)


def checked_budget(model: nn.Module, config: Structured, length: float) -> Budget:
    """The budget that `config` asks for; `length` is the mean number of real tokens of a calibration row.

    Raises:
        RequestError: what `config` asks of the model cannot be met.
    """
    check_filter(model, config)
    sites = sites_of(model, config.by_query_head)
    budget = budget_of(model, config, length)
    budget.check(bounds_of(sites, budget, config))
    if config.repair == "bias" and all(bias_of(site.output) is None for site in sites):
        rule = "repair must be none or least-squares for a model whose output projections have no bias"
        raise RequestError(f"{rule}, got 'bias'")
    if config.drop_layers:
        check_drop(sites, budget, config.drop_layers)
    return budget


def _achieved(model: nn.Module, timed: nn.Module, budget: Budget, config: Structured) -> tuple[float, tuple[str, ...]]:
    """The fraction of the budget's cost that `model` has of the dense one, and what is to be said of it."""
    if budget.kind != "latency":
        return budget.kept(sites_of(model, config.by_query_head)), ()
    achieved = _measured_ratio(timed, merge_(copy.deepcopy(model)), config)
    if abs(achieved / budget.fraction - 1) <= LATENCY_TOLERANCE:
        return achieved, ()
    return achieved, (f"latency: {budget.fraction:g} of dense was asked, {achieved:.3f} was measured at the end",)


def _plan(
    model: nn.Module,
    timed: nn.Module,
    sites: list[Site],
    scores: dict[str, Tensor],
    budget: Budget,
    fraction: float,
    config: Structured,
) -> Plan:
    """The units to keep for a `fraction` of the budget. A plan on measured latencies is itself timed, and corrected.

    `timed` is the dense model where it is to run.
    """
    bounds = bounds_of(sites, budget, config)

    def plan_for(target: float) -> Plan:
        return ALLOCATORS[config.allocation](scores, bounds, budget.left_for_sites(target))

    if budget.kind != "latency":
        return plan_for(fraction)
    target, best, miss = fraction, plan_for(fraction), float("inf")
    for _ in range(_CORRECTIONS):
        plan = plan_for(target)
        candidate = merge_(copy.deepcopy(model))
        cut_(candidate, plan)
        ratio = _measured_ratio(timed, candidate, config)
        if abs(ratio / fraction - 1) < miss:
            best, miss = plan, abs(ratio / fraction - 1)
        if miss < LATENCY_TOLERANCE / 3:
            break
        target *= fraction / ratio
    return best


def _measured_ratio(timed: nn.Module, plain: nn.Module, config: Structured) -> float:
    """Measured latency of a model without adapters over that of the dense one, where they are to run."""

    def ratio() -> float:
        there = in_engine(plain, config.latency_engine)
        return 1 / speedup(timed, there, config.latency_batch_size, config.latency_length)

    return from_first(ratio)


def score_units_of(model: nn.Module, batches: Sequence[Batch], config: Structured, *, progress: bool = False) -> Scores:
    """The scores of a model's heads and neurons as `config` asks: see `niwaki.score`."""
    sites, by_head = sites_of(model, config.by_query_head), config.by_query_head
    need = need_of(UNIT_NEEDS, config.head_score, config.neuron_score)
    seen = observe(model, batches, need, query_heads=by_head, seed=config.seed, progress=progress)
    scores = score_units(model, sites, seen, batches, config, progress=progress)
    found = Scores()
    found.update({site.name: scores[site.name].tolist() for site in sites})
    found.importance = importances(scores)
    return found
