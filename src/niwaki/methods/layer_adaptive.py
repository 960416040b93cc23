"""observe -> score -> allocate -> prune -> repair: the whole of layer-adaptive pruning, read top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import apply_mask_, check_unmerged, mask_of
from niwaki.allocation.profiles import profiles_of
from niwaki.allocation.sparsity import check_budget
from niwaki.anatomy import BlockLinear, check_filter, check_units, linears_of, weight_of
from niwaki.checkpoint import mapped_copy, merged
from niwaki.config import LayerAdaptive
from niwaki.config.layer_adaptive import AUTO, SOLVED
from niwaki.config.patterns import Block, NByM
from niwaki.masks import check_divides, choose
from niwaki.methods.importance_strength import best_strength, strength_passes
from niwaki.methods.plan import Seen
from niwaki.methods.scores import Scores
from niwaki.methods.weight_plan import WeightPlan
from niwaki.methods.weight_profiles import DATA_SCORES, Scored, chosen_by, score_linears
from niwaki.observe import Batch, Need, Passes, Statistics, need_of, observe
from niwaki.observe.moments import with_moments
from niwaki.processes import known_to_all
from niwaki.repair.block_reconstruction import learns, reconstruction, reconstruction_passes
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
    """Zero weights of `model` in place, exactly to the budget of `config`; the masks are held.

    Arguments as `niwaki.prune_` has checked them; recovery learns from `training`.

    Raises:
        RequestError: the model is not supported, bounds that cannot meet the budget, a pattern that does not divide a
            linear; before any work.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    meant = config.resolved()
    zeroing = _Zeroing(model, meant, progress)
    seen = Seen()
    for step in range(1, meant.steps + 1):
        sparsity = meant.budget[1] * (1 - (1 - step / meant.steps) ** 3)
        plan = zeroing.plan(dataclasses.replace(meant, sparsity=sparsity), batches, seen)
        if meant.importance_strength == AUTO:  # what the first step finds holds for all
            meant = dataclasses.replace(meant, importance_strength=plan.strength)
        seen = Seen(token_weights=plan.seen.token_weights)
        zeroing.passes += plan.passes
        zeroing.carry_out_(plan, batches, training, step)
    return zeroing.result(meant)


def plan_weights(
    model: nn.Module,
    config: LayerAdaptive,
    batches: Sequence[Batch],
    *,
    around: Sequence[float] = (),
    progress: bool = False,
) -> WeightPlan:
    """What `prune_weights_` would make zero in `model`, which is left as it is.

    For `search`, losses are measured around each of the sparsities `around`, too.

    Raises:
        RequestError, WorkError: as `prune_weights_`.
    """
    plan = _Zeroing(model, config.resolved(), progress).plan(config.resolved(), batches, Seen(), around)
    own = {
        name: dataclasses.replace(profile, weights=_copied(profile.weights)) for name, profile in plan.profiles.items()
    }
    return dataclasses.replace(plan, config=config, profiles=own)


def apply_weights_(
    model: nn.Module,
    plan: WeightPlan,
    batches: Sequence[Batch],
    training: TrainingData,
    *,
    progress: bool = False,
) -> StageResult:
    """Zero in `model` in place as many weights of each linear as `plan` says, refit and recover as its request asks.

    What is looked at and the plan has not seen (it may be one of other data) is observed first.

    Raises:
        RequestError: a plan of another model. WorkError: a statistic, a loss or a solve is not finite.
    """
    meant = plan.meant
    plan.check_fits(model)
    zeroing = _Zeroing(model, meant, progress)
    need = _looked_at(meant, batches)
    ranks = meant.weight_score in DATA_SCORES
    if not plan.seen.covers(need) or (ranks and not plan.seen.statistics.rows):
        found = observe(model, batches, need, seed=meant.seed, progress=progress)
        zeroing.passes += found.passes
        plan = dataclasses.replace(plan, seen=Seen(found, found.token_weights if need.token_sizes else None, need))
    zeroing.carry_out_(plan, batches, training)
    return zeroing.result(meant)


def _copied(weights: Tensor | None) -> Tensor | None:
    """Weights that stay as they are when those of the model change."""
    return None if weights is None else weights.detach().clone()


def _looked_at(config: LayerAdaptive, batches: Sequence[Batch]) -> Need:
    """What is to be observed for the scores of weights, the refit and layers that learn."""
    learning = learns(config, batches) != "none"
    return chosen_by(config) | Need(
        token_sizes=config.repair == "least-squares", output_gradients=config.compares_rows or learning
    )


class _Zeroing:
    """A model on its way to a sparsity, in one step or in several."""

    def __init__(self, model: nn.Module, config: LayerAdaptive, progress: bool) -> None:
        self.started, self.passes, self.progress = time.perf_counter(), Passes(), progress
        self.model, self.linears = model, linears_of(model)
        check_weights(model, self.linears, config)
        # What one pass over the layers can do without.
        self.dense = mapped_copy(merged(model)) if config.steps > 1 or config.recover_epochs else None
        self.first: WeightPlan | None = None
        self.warnings: list[str] = []

    def plan(
        self, config: LayerAdaptive, batches: Sequence[Batch], seen: Seen, around: Sequence[float] = ()
    ) -> WeightPlan:
        """Observe and score the model as it stands; token weights that were `seen` before are not made again."""
        also = _looked_at(config, batches)
        scored = score_linears(
            self.model,
            self.linears,
            config,
            batches,
            seen.token_weights,
            also=also,
            around=around,
            progress=self.progress,
        )
        plan = WeightPlan(
            config=config,
            profiles=scored.profiles,
            curves=scored.curves,
            seen=Seen(scored.statistics, scored.token_weights, also),
            beside=scores_beside(self.linears, scored.statistics),
            passes=scored.passes,
        )
        if config.importance_strength == AUTO:
            strength = self._strength(plan, scored, batches)
            plan = dataclasses.replace(
                plan, strength=strength, passes=plan.passes + strength_passes(scored.statistics.rows)
            )
        return dataclasses.replace(plan, zeros=plan.zeros_for(config.budget[1]))

    def _strength(self, plan: WeightPlan, scored: Scored, data: Sequence[Batch]) -> float:
        """The strength that is best for the formula of the rule."""
        config = dataclasses.replace(plan.config, importance_strength=None)
        formula = dataclasses.replace(plan, config=config).zeros_for(config.budget[1])
        ranked = dataclasses.replace(config, weight_score="wanda") if config.weight_score in SOLVED else config

        def mask_for(linear: BlockLinear, zeros: int) -> Tensor:
            return _ranked_mask(linear, weight_scores(linear, scored.statistics, ranked), zeros, ranked)

        return best_strength(self.model, self.linears, formula, scored.profiles, mask_for, data, config.seed)

    def carry_out_(self, plan: WeightPlan, batches: Sequence[Batch], training: TrainingData, step: int = 1) -> None:
        """Choose the masks, hold them, refit the weights, let the model recover."""
        config = plan.meant
        self.first = self.first or plan
        self.warnings += _prune_(self.model, self.dense, self.linears, batches, plan, config, self.progress)
        if config.repair == "least-squares" or config.weight_score in SOLVED:
            both = AT_ONCE_PASSES if config.fast else REFIT_PASSES
            self.passes += Passes(both if config.repair == "least-squares" else both / 2)
        self.passes += reconstruction_passes(learns(config, batches), batches)
        if config.recover_epochs and self.dense is not None:
            self.passes += recover_(
                self.model, self.dense, training, config, batches, step=step, progress=self.progress
            )

    def result(self, config: LayerAdaptive) -> StageResult:
        """What was asked, delivered and spent."""
        seconds = time.perf_counter() - self.started
        assert self.first is not None, "no step was carried out"
        return _result(self.linears, config, self.first, self.warnings, self.passes, seconds)


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
        check_budget(profiles_of(linears, config), round(config.budget[1] * total), config.told)


def _ranked_mask(linear: BlockLinear, scores: Tensor, zeros: int, config: LayerAdaptive) -> Tensor:
    """The mask of the highest scores; Wanda compares those of a row."""
    by_row, before = config.weight_score == "wanda", mask_of(linear.module)
    return choose(scores, zeros, config.zero_pattern, linear.name, before=before, by_row=by_row)


def _prune_(
    model: nn.Module,
    dense: nn.Module | None,
    linears: Sequence[BlockLinear],
    data: Sequence[Batch],
    plan: WeightPlan,
    config: LayerAdaptive,
    progress: bool,
) -> list[str]:
    """Choose the masks, hold them and refit the weights as `config` asks; returns warnings."""
    mask_for = _chooser(plan, config)
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
        weights=plan.seen.token_weights if targets else None,
        targets=targets,
        at_once=config.fast,
        # Of blocks, what one linear could not give the next does.
        kept_by=None if isinstance(config.zero_pattern, Block) else f"{config} {sorted(plan.zeros.items())}",
        then=reconstruction(learns(config, data), data, plan.seen.statistics, plan.seen.token_weights, config.seed),
        kept=plan.seen.targets,
        progress=progress,
    )


_Chooser = Callable[[BlockLinear, Optimum | None], tuple[Tensor, Tensor]]


def _chooser(plan: WeightPlan, config: LayerAdaptive) -> _Chooser:
    """Linear and its optimum -> pruned weight and mask, with the zeros of `plan`; blocks that do not fit (there are
    zeros in them already) go on to the next linears.

    Solves choose and refit at once; other scores are those of the weights as they are. What is repaired has the best
    values that its mask allows.
    """
    pattern, statistics = config.zero_pattern, plan.seen.statistics
    whole = sum(profile.size for profile in plan.profiles.values())
    missing = max(0, round(config.budget[1] * whole) - sum(plan.zeros.values()))  # less than a block

    def sparsify(linear: BlockLinear, best: Optimum | None) -> tuple[Tensor, Tensor]:
        nonlocal missing
        # A site without units has a bias to refit. The hand may cut what the request spares.
        if not linear.size or not (config.may_cut(linear.site) or linear.name in plan.ratios):
            kept = mask_of(linear.module)
            if kept is None:
                kept = torch.ones(linear.shape, dtype=torch.bool, device=weight_of(linear.module).device)
            return (kept if best is None else on_mask(best, kept)), kept
        planned = plan.zeros[linear.name] + missing
        wanted = min(planned, linear.size)
        if best is not None and config.weight_score in SOLVED:
            weight, mask = _solved(linear, best, wanted, statistics, config)
        else:
            found = plan.profiles[linear.name].scores
            found = weight_scores(linear, statistics, config) if found is None else found
            mask = _ranked_mask(linear, found, wanted, config)
            weight = mask if best is None else on_mask(best, mask)
        missing = planned - (linear.size - int(mask.sum())) if isinstance(pattern, Block) else 0
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
        other = admm_mask(target, best.moments.float(), weight, zeros, pattern, name, before=before)
        refitted = on_mask(best, other, weight)
        if excess(best, refitted) <= excess(best, weight):
            return refitted / scale, other
    return (weight if config.repair == "none" else on_mask(best, mask, weight)) / scale, mask


def _result(
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    first: WeightPlan,
    warnings: list[str],
    passes: Passes,
    seconds: float,
) -> StageResult:
    """What was done, and how linears were scored first.

    More zeros than asked, where n:m met zeros that were there, and fewer, where whole blocks did not fit beside them,
    are a warning.
    """
    layers = []
    for linear in linears:
        mask = mask_of(linear.module)
        kept = linear.size if mask is None else int(mask.sum())
        importance, others = first.importance[linear.name], first.beside.get(linear.name, {})
        layers.append(SiteResult(linear.name, "linear", importance, kept, linear.size, other_scores=others))
    total = sum(layer.total for layer in layers)
    zeros = sum(layer.total - layer.kept for layer in layers)
    achieved, asked = zeros / total, config.budget[1]
    drawn = config.importance_strength
    strength = {} if drawn is None else {"importance_strength": drawn}
    if isinstance(config.zero_pattern, NByM):  # a sparsity of what may be cut
        asked *= sum(linear.size for linear in linears if config.may_cut(linear.site)) / total
    pattern, missed = config.zero_pattern, round(asked * total) - zeros
    if isinstance(pattern, Block) and abs(missed) >= pattern.size:
        told = f"no more blocks of {pattern} fit beside the zeros that the model held"
        warnings = [*warnings, f"sparsity is {achieved:.4f}, not {asked:g}: {told}"]
    if isinstance(pattern, NByM) and missed < 0:
        warnings = [
            *warnings,
            f"sparsity is {achieved:.4f}, not the {asked:g} of {config.pattern}: zeros that the model held stay zero",
        ]
    return StageResult(
        name=WeightPlan.KIND,
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
        pairs = with_moments(model, statistics, batches, statistics.token_weights, shared=True, progress=progress)
    means = {}
    for linear, own in pairs:
        scores = WEIGHT_SCORERS[config.weight_score](linear, own, config.seed).double()
        means[linear.name] = scores.mean(1).tolist()
    if need.moments:
        means = known_to_all(means)
    found = Scores()
    found.update({linear.name: means[linear.name] for linear in linears})
    if config.layer_score:
        found.importance = layer_importance(model, linears, statistics, batches, config)
    return found
