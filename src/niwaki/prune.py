"""observe -> score -> allocate -> prune -> repair: the whole of structured pruning, read top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable

from rich.console import Console
from torch import nn

from niwaki.allocation import ALLOCATORS, Bounds, least_cost
from niwaki.anatomy import Site, count, sites_of, unit_flops, unit_params
from niwaki.config import Structured
from niwaki.data import mean_length
from niwaki.errors import RequestError
from niwaki.lora import check_adapters
from niwaki.observe import Batch, observe
from niwaki.repair import refit_
from niwaki.results import SiteResult, StageResult
from niwaki.scoring import need_of, score_sites
from niwaki.surgery import cut_, plan_table
from niwaki.surgery.plan import shares


def prune_(model: nn.Module, config: Structured, data: Iterable[Batch], progress: bool = False) -> StageResult:
    """Prune `model` in place to the budget of `config` and say what was done.

    `model` is a supported `PreTrainedModel` or a `PeftModel` around one, whose LoRA stays attached; `data` an iterable
    of batches (dicts of tensors with `input_ids`, and `attention_mask` where there is padding).

    Raises:
        RequestError: the model is not supported, or the budget is below what the minimum widths allow; before any work.
        WorkError: a statistic or a solve is not finite.
    """
    started = time.perf_counter()
    check_adapters(model)
    batches = list(data)
    length = mean_length(batches)
    sites = sites_of(model)
    kind, requested = config.budget
    cost = {s.name: unit_cost(s, kind, length) for s in sites}
    fixed = block_cost(model, kind) - sum(cost[s.name] * s.units for s in sites) if kind == "params" else 0.0
    total = fixed + sum(cost[site.name] * site.units for site in sites)
    bounds = bounds_of(sites, cost, config)
    least = (fixed + least_cost({site.name: site.units for site in sites}, bounds)) / total
    if requested < least:
        raise RequestError(f"{kind} must be at least {least:.4f} with these minimum widths, got {requested:g}")

    dense = copy.deepcopy(model) if config.repair != "none" else None
    before = {site.name: site.units for site in sites}
    importance: dict[str, float] = {}
    forwards = backwards = 0.0
    for step in range(1, config.steps + 1):
        sites = sites_of(model)
        need = need_of(config.head_score, config.neuron_score)
        statistics = observe(model, batches, need, seed=config.seed, progress=progress)
        scores = score_sites(sites, statistics, config.head_score, config.neuron_score, config.seed)
        importance = importance or shares(scores)
        kept_now = 1.0 - (1.0 - requested) * step / config.steps
        plan = ALLOCATORS[config.allocation](scores, bounds, kept_now * total - fixed)
        if progress:
            Console(stderr=True).print(plan_table(sites, scores, plan))
        cut_(model, plan)
        if dense is not None:
            refit_(model, dense, batches, config.repair, progress=progress)
            forwards += 4.0
        forwards += statistics.forward_passes
        backwards += statistics.backward_passes

    after = sites_of(model)
    achieved = (fixed + sum(cost[site.name] * site.units for site in after)) / total
    layers = tuple(
        SiteResult(s.name, s.kind, importance[s.name], 1 - s.units / before[s.name], s.units, before[s.name])
        for s in after
    )
    seconds = time.perf_counter() - started
    return StageResult("structured", kind, requested, achieved, seconds, forwards, backwards, layers)


def score(model: nn.Module, data: Iterable[Batch], config: Structured | None = None) -> dict[str, list[float]]:
    """Importance only: site name -> one score per unit, higher is more important. Nothing is pruned."""
    chosen = config or Structured(flops=1.0)
    check_adapters(model)
    statistics = observe(model, data, need_of(chosen.head_score, chosen.neuron_score), seed=chosen.seed)
    scores = score_sites(sites_of(model), statistics, chosen.head_score, chosen.neuron_score, chosen.seed)
    return {name: values.tolist() for name, values in scores.items()}


def unit_cost(site: Site, kind: str, length: float) -> float:
    """What one unit of `site` costs in the budget's kind."""
    return float(unit_params(site)) if kind == "params" else unit_flops(site, length)


def block_cost(model: nn.Module, kind: str) -> float:
    """All of the blocks, in the budget's kind; only `params` has a part that no unit owns (norms, output biases)."""
    return float(count(model, 1.0).block_params) if kind == "params" else 0.0


def bounds_of(sites: list[Site], cost: dict[str, float], config: Structured) -> dict[str, Bounds]:
    """Minimum widths and multiples of every site."""
    return {
        site.name: Bounds(cost[site.name], site.units if site.fixed else config.min_heads)
        if site.kind == "attention"
        else Bounds(cost[site.name], config.min_neurons, config.round_to)
        for site in sites
    }
