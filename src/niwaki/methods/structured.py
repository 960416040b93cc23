"""observe -> score -> allocate -> prune -> repair: the whole of structured pruning, read top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence

from torch import nn

from niwaki.adapters import bias_of, merge_
from niwaki.allocation.budget import Budget, bounds_of, budgets_of, check_widths
from niwaki.anatomy import Site, check_filter, check_units, linears_of, sites_of, unwrap
from niwaki.checkpoint import mapped_copy, merged
from niwaki.config import Structured
from niwaki.data import mean_length
from niwaki.errors import RequestError
from niwaki.evaluate import check_length, speedup
from niwaki.export import check_engine, in_engine
from niwaki.methods.drop_layers import check_drop, drop_layers_
from niwaki.methods.plan import Seen
from niwaki.methods.scores import Scores
from niwaki.methods.unit_plan import UnitPlan, importances
from niwaki.observe import Batch, Need, Passes, Statistics, need_of, observe
from niwaki.observe.losses import check_losses
from niwaki.observe.statistics import LinearSums
from niwaki.processes import from_first
from niwaki.progress import show
from niwaki.repair.block_reconstruction import learns, reconstruction, reconstruction_passes
from niwaki.repair.refit import refit_
from niwaki.repair.sequential_least_squares import REFIT_PASSES, WRITING_PASSES
from niwaki.results import SiteResult, StageResult
from niwaki.scoring.beside import scores_beside
from niwaki.scoring.units import UNIT_NEEDS, score_units
from niwaki.surgery import Kept, cut_
from niwaki.surgery.shapes import loads_plainly, shapes_of
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
    """Remove heads and neurons of `model` in place, to the budget of `config`: each step is a plan, carried out.

    Arguments as `niwaki.prune_` has checked them; recovery learns from `training`.

    Raises:
        RequestError: the model is not supported, or the budget is below what the minimum widths allow; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    cutting = _Cutting(model, config, checked_budgets(model, config, mean_length(batches)), progress)
    seen = Seen()
    if config.drop_layers:
        if need_of(UNIT_NEEDS, config.head_score, config.neuron_score).task:
            check_losses(model, batches)
        found = drop_layers_(model, batches, config.drop_layers, config.seed, progress=progress)
        seen, cutting.passes = Seen(token_weights=found.token_weights), found.passes
    for step in range(1, config.steps + 1):
        plan = cutting.plan(batches, seen, step)
        seen = Seen(token_weights=plan.seen.token_weights)
        cutting.passes += plan.passes
        cutting.carry_out_(plan, batches, training, step)
    return cutting.result()


def plan_units(model: nn.Module, config: Structured, batches: Sequence[Batch], *, progress: bool = False) -> UnitPlan:
    """What `prune_units_` would remove from `model`, which is left as it is.

    Raises:
        RequestError, WorkError: as `prune_units_`.
    """
    budgets = checked_budgets(model, config, mean_length(batches))
    return _Cutting(model, config, budgets, progress).plan(batches, Seen())


def apply_units_(
    model: nn.Module,
    plan: UnitPlan,
    batches: Sequence[Batch],
    training: TrainingData,
    *,
    progress: bool = False,
) -> StageResult:
    """Remove from `model` in place what `plan` says, refit and recover as its request asks.

    What is looked at and the plan has not seen (it may be one of other data) is observed first.

    Raises:
        RequestError: a plan of another model. WorkError: a statistic, a loss or a solve is not finite.
    """
    config = plan.config
    plan.check_fits(model)
    cutting = _Cutting(model, config, plan.budgets, progress)
    need = _looked_at(config, batches)
    if not plan.seen.covers(need):
        by_head = config.by_query_head
        found = observe(model, batches, need, query_heads=by_head, seed=config.seed, progress=progress)
        cutting.passes += found.passes
        plan = dataclasses.replace(plan, seen=_seen(found, need))
    cutting.carry_out_(plan, batches, training)
    return cutting.result()


class _Cutting:
    """A model on its way to a budget, in one step or in several, beside the dense one that it came from."""

    def __init__(self, model: nn.Module, config: Structured, budgets: dict[str, Budget], progress: bool) -> None:
        kind, fraction = config.budget
        self.model, self.config, self.progress = model, config, progress
        self.budgets, self.budget = budgets, dataclasses.replace(budgets[kind], fraction=fraction)
        self.started, self.passes = time.perf_counter(), Passes()
        self.before = {site.name: site.units for site in sites_of(model, config.by_query_head)}
        self.dense: nn.Module = mapped_copy(merged(model))
        self.timed = in_engine(self.dense, config.latency_engine) if kind == "latency" else self.dense
        self.kept: Kept | None = None
        self.first: UnitPlan | None = None

    def plan(self, batches: Sequence[Batch], seen: Seen, step: int = 1) -> UnitPlan:
        """Observe and score the model as it stands; token weights that were `seen` before are not made again."""
        config, by_head = self.config, self.config.by_query_head
        also = _looked_at(config, batches)
        if seen.token_weights is not None:
            also = dataclasses.replace(also, token_sizes=False)
        need = need_of(UNIT_NEEDS, config.head_score, config.neuron_score)
        sites = sites_of(self.model, by_head)
        found = observe(self.model, batches, need | also, query_heads=by_head, seed=config.seed, progress=self.progress)
        plan = UnitPlan(
            config=config,
            sites=tuple(site.counted for site in sites),
            scores=score_units(self.model, sites, found, batches, config, progress=self.progress),
            budgets=self.budgets,
            shares_keys=any(site.in_groups for site in sites_of(self.model, query_heads=True)),
            seen=_seen(found, also, seen),
            beside=scores_beside(linears_of(self.model), found),
            passes=found.passes + Passes(float(need.moments)),
        )
        left = 1 - step / config.steps
        fraction = self.budget.fraction + (1 - self.budget.fraction) * left
        kept = self._timed(plan, fraction) if self.budget.kind == "latency" else plan.kept_for(fraction)
        return dataclasses.replace(plan, kept=kept)

    def carry_out_(self, plan: UnitPlan, batches: Sequence[Batch], training: TrainingData, step: int = 1) -> None:
        """Cut the model, refit it to the dense one, let it recover."""
        config, by_head, weights = self.config, self.config.by_query_head, plan.seen.token_weights
        self.first = self.first or plan
        show(plan.table(), self.progress)
        cut_(self.model, plan.kept, by_head)
        before, self.kept = self.kept, plan.kept
        if before is not None:
            self.kept = {name: before[name][units] for name, units in plan.kept.items()}
        if config.repair != "none":
            which = learns(config, batches)
            then = reconstruction(which, batches, plan.seen.statistics, weights, config.seed)
            refit_(self.model, self.dense, batches, self.kept, config.repair, weights=weights, query_heads=by_head,
                   then=then, targets=plan.seen.targets, progress=self.progress)  # fmt: skip
            refitted = WRITING_PASSES if config.repair == "bias" else REFIT_PASSES
            self.passes += Passes(refitted) + reconstruction_passes(which, batches)
        if config.recover_epochs:
            self.passes += recover_(
                self.model, self.dense, training, config, batches, step=step, progress=self.progress
            )

    def _timed(self, plan: UnitPlan, fraction: float) -> Kept:
        """The units to keep for a `fraction` of the latency, as measured; what is off is corrected."""
        target, best, miss = fraction, plan.kept_for(fraction), float("inf")
        for _ in range(_CORRECTIONS):
            kept = plan.kept_for(target)
            candidate = merge_(copy.deepcopy(self.model))
            cut_(candidate, kept)
            ratio = self._latency_of(candidate)
            if abs(ratio / fraction - 1) < miss:
                best, miss = kept, abs(ratio / fraction - 1)
            if miss < LATENCY_TOLERANCE / 3:
                break
            target *= fraction / ratio
        return best

    def _latency_of(self, plain: nn.Module) -> float:
        """Measured latency of a model without adapters over that of the dense one, where they are to run."""
        config = self.config

        def ratio() -> float:
            there = in_engine(plain, config.latency_engine)
            return 1 / speedup(self.timed, there, config.latency_batch_size, config.latency_length)

        return from_first(ratio)

    def result(self) -> StageResult:
        """What was asked, delivered and spent."""
        sites = sites_of(self.model, self.config.by_query_head)
        budget, warnings = self.budget, ()
        if budget.kind == "latency":
            achieved = self._latency_of(merge_(copy.deepcopy(self.model)))
            if abs(achieved / budget.fraction - 1) > LATENCY_TOLERANCE:
                asked = f"{budget.fraction:g} of dense was asked"
                warnings = (f"latency: {asked}, {achieved:.3f} was measured at the end",)
        else:
            achieved = budget.kept(sites)
        return StageResult(
            name=UnitPlan.KIND,
            kind=budget.kind,
            requested=budget.fraction,
            achieved=achieved,
            seconds=time.perf_counter() - self.started,
            forward_passes=self.passes.forward,
            backward_passes=self.passes.backward,
            layers=tuple(self._left(site) for site in sites),
            warnings=warnings + self._not_plain(sites),
        )

    def _not_plain(self, sites: Sequence[Site]) -> tuple[str, ...]:
        """A warning where uniform widths were asked and the model needs Niwaki to load nevertheless, and why."""
        if self.config.allocation != "uniform" or loads_plainly(self.model):
            return ()
        widths: dict[tuple[str, int], set[int]] = {}
        for site in sites:
            if self.config.may_cut(site):
                widths.setdefault((site.kind, self.before[site.name]), set()).add(site.units)
        uneven = ", ".join(f"{kind} {min(each)} to {max(each)}" for (kind, _), each in widths.items() if len(each) > 1)
        if uneven:
            met = f"{self.budget.kind} {self.budget.fraction:g} was met exactly by widths that differ ({uneven})"
            return (f"uniform: {met}: the model needs Niwaki to load, or another budget",)
        alike = len(set(map(str, shapes_of(unwrap(self.model))))) == 1
        kind = unwrap(self.model).config.model_type
        why = f"no plain config of a {kind} model says such widths" if alike else f"layers differ{self.config.told}"
        return (f"uniform: {why}: the model needs Niwaki to load, or export --to remote-code",)

    def _left(self, site: Site) -> SiteResult:
        """What is left of a site, as it was scored first; of heads one by one, while neurons are too many for that."""
        first, kept = self.first, self.kept
        assert first is not None, "no step was carried out"
        assert kept is not None, "no step was carried out"
        heads = {"scores": first.scores, "units": kept} if site.kind == "attention" else {}
        one_by_one = {name: tuple(values[site.name].tolist()) for name, values in heads.items()}
        return SiteResult(
            site.name,
            site.kind,
            first.importance[site.name],
            site.units,
            self.before[site.name],
            **one_by_one,
            other_scores=first.beside.get(site.output_name, {}),
        )


def _looked_at(config: Structured, batches: Sequence[Batch]) -> Need:
    """What is to be observed for the refit and for layers that learn."""
    return Need(token_sizes=config.repair != "none", output_gradients=learns(config, batches) != "none")


def _seen(found: Statistics, need: Need, before: Seen | None = None) -> Seen:
    """What of an observation the repair looks at again; token weights from `before` where it made none."""
    linears = {name: LinearSums(gradient_squares=sums.gradient_squares) for name, sums in found.linears.items()}
    kept = Statistics(linears=linears, tokens=found.tokens, rows=found.rows)
    weights = found.token_weights if need.token_sizes else before and before.token_weights
    return Seen(kept, weights, need)


def checked_budgets(model: nn.Module, config: Structured, length: float) -> dict[str, Budget]:
    """The budget that `config` asks for and those that can be counted, by kind.

    `length` is the mean number of real tokens of a calibration row.

    Raises:
        RequestError: what `config` asks of the model cannot be met.
    """
    sites = _checked_sites(model, config)
    budgets = budgets_of(model, config, length)
    budget = budgets[config.budget[0]]
    budget.check(bounds_of(sites, budget, config), config.told)
    if config.drop_layers:
        check_drop(sites, budget, config.drop_layers)
    return budgets


def check_timed(model: nn.Module, config: Structured) -> None:
    """Refuse of a budget in latency what cannot be, whatever will be timed.

    Raises:
        RequestError: naming what cannot be.
    """
    check_units(model)
    check_widths(_checked_sites(model, config), config)
    check_length(model, config.latency_length)
    check_engine(config.latency_engine)


def _checked_sites(model: nn.Module, config: Structured) -> list[Site]:
    """The sites, of a model in which all that `config` names is there.

    Raises:
        RequestError: naming what is not.
    """
    check_filter(model, config)
    sites = sites_of(model, config.by_query_head)
    if config.repair == "bias" and all(bias_of(site.output) is None for site in sites):
        rule = "repair must be none or least-squares for a model whose output projections have no bias"
        raise RequestError(f"{rule}, got 'bias'")
    return sites


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
