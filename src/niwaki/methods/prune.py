"""The verbs for every way of pruning: `plan`, `apply_`, and `prune_`, which is both; the config says which way."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TypeVar, cast, overload

from torch import nn

from niwaki.adapters import check_model, check_unmoved, forget_base_
from niwaki.allocation.profiles import profiles_of
from niwaki.allocation.sparsity import possible_sparsities
from niwaki.anatomy import ANSWERER, Site, accepts_of, as_held, linears_of, sites_of, supported_task
from niwaki.config import DynamicSparsityTraining, LayerAdaptive, Structured
from niwaki.config.patterns import NByM
from niwaki.config.planned import check_plannable
from niwaki.data import Batches, checked_batches, mean_length
from niwaki.errors import RequestError, check_kind
from niwaki.evaluate import check_metric, check_questions
from niwaki.methods.dynamic import prune_dynamically_
from niwaki.methods.keep_quality import Goal, keep_quality_
from niwaki.methods.layer_adaptive import apply_weights_, plan_weights, prune_weights_, score_weights
from niwaki.methods.plan import Origin, Plan, Seen, data_digest, model_digest
from niwaki.methods.scores import Scores
from niwaki.methods.structured import apply_units_, plan_units, prune_units_, score_units_of
from niwaki.methods.unit_plan import UnitPlan
from niwaki.methods.weight_plan import WeightPlan
from niwaki.numerics.autograd import gradients_on
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.processes import check_enough, count
from niwaki.results import StageResult
from niwaki.train.data import recovery_data
from niwaki.train.data import training_data as training_data_of

_Config = TypeVar("_Config", bound=Structured | LayerAdaptive | DynamicSparsityTraining)
_Planned = TypeVar("_Planned", bound=Structured | LayerAdaptive)

WITHOUT_DATA = ("magnitude", "random")
"""Weight scores that can be taken of a model alone."""


def prune_(
    model: nn.Module,
    config: Structured | LayerAdaptive | DynamicSparsityTraining,
    data: Iterable[Batch],
    *,
    training_data: Iterable[Batch] | None = None,
    filter: Callable[[Site], bool] | None = None,
    held_out: Iterable[Batch] | None = None,
    metric: str | None = None,
    progress: bool = False,
) -> StageResult:
    """Prune `model` in place to the budget of `config` and say what was done.

    `model` is a supported `PreTrainedModel` or a `PeftModel` around one, whose LoRA stays attached; `data` an iterable
    of batches (dicts of tensors with `input_ids`, and `attention_mask` where there is padding). Recovery and dynamic
    sparsity train on `training_data`, on `data` where there are none; a plain model stays one. A training that fails
    or is interrupted leaves the model as it was before that training; a fit leaves it half pruned, to be loaded anew.
    Where `filter` says False of a site (see `niwaki.anatomy.Site`: its `name`, `kind`, `layer`), nothing of it is cut;
    the budget is that of all blocks still.
    Where torch.distributed is initialised, every process calls this with the same model and `data`; each works on its
    share of the batches, and all end with the same model.
    A budget that is to keep the quality is searched by `metric` (the usual one of the task by default) on `held_out`,
    batches with labels that should be no part of `data`.

    Raises:
        RequestError: before any work: the model is not supported, the data are no batches that it takes, the budget is
            below what the minimum widths allow, or what is to be trained cannot be.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    kinds = (Structured, LayerAdaptive, DynamicSparsityTraining)
    check_kind("config", config, kinds, "Structured, LayerAdaptive or DynamicSparsityTraining")
    if filter is not None:
        config = _sparing(model, config, filter)
    if not isinstance(config, DynamicSparsityTraining) and (config.plan or config.keep_quality):
        return _by_plan_(model, config, data, training_data, held_out, metric, progress)
    with seeded(config.seed), gradients_on(), as_held(model):  # a loader that shuffles draws from the global state, too
        if isinstance(config, DynamicSparsityTraining):
            done = prune_dynamically_(model, config, data, training=training_data, progress=progress)
        else:
            check_model(model)
            check_unmoved(model)
            batches = checked_batches(accepts_of(model), data)
            check_enough(batches)
            recovery = recovery_data(model, config, training_data, batches)
            if isinstance(config, LayerAdaptive):
                done = prune_weights_(model, config, batches, recovery, progress=progress)
            else:
                done = prune_units_(model, config.resolved(), batches, recovery, progress=progress)
    forget_base_(model)
    return done


def _by_plan_(
    model: nn.Module,
    config: Structured | LayerAdaptive,
    data: Iterable[Batch],
    training_data: Iterable[Batch] | None,
    held_out: Iterable[Batch] | None,
    metric: str | None,
    progress: bool,
) -> StageResult:
    """Prune by a plan that was made before, or by one for many budgets, of which one keeps the quality."""
    if config.keep_quality is None:
        made = Plan.load(str(config.plan)).under(config)
        return apply_(model, made, data, training_data=training_data, progress=progress)
    if held_out is None:
        config.searched()
    check_metric(model, metric)
    with seeded(config.seed), gradients_on(), as_held(model):
        tests = training_data_of(model, held_out, labels=True, name="held_out")
        if supported_task(model) is ANSWERER:
            check_questions(tests, "held_out")
        batches = checked_batches(accepts_of(model), data)
    if training_data is not None and not isinstance(training_data, Batches):  # every try goes through it
        training_data = list(training_data)
    start = for_any_budget(model, config)
    if config.plan is not None:
        made = Plan.load(config.plan)
        made.check_fits(model)
        made = made.under(dataclasses.replace(start, plan=None)).at_length(model, mean_length(batches))
    else:
        made = plan(model, start, batches, around=AROUND, progress=progress)

    def carry_out_(candidate: nn.Module, cut: Plan) -> StageResult:
        return apply_(candidate, cut, batches, training_data=training_data, progress=progress)

    goal = Goal(config.keep_quality, config.tries, tests, metric)
    with tempfile.TemporaryDirectory(prefix="niwaki-") as place:
        made = made.keeping_targets(Path(place) / "targets")
        return keep_quality_(model, made, goal, carry_out_, progress=progress)


ANY_BUDGET = {Structured: ("flops", 1.0), LayerAdaptive: ("sparsity", 0.5)}
"""The budget that a plan is made for where no other is asked than those that it will be cut for, if it can be."""
AROUND = (0.75, 0.9)
"""The other sparsities around which such a plan is measured, for the allocation `search`."""


def for_any_budget(model: nn.Module, config: _Planned) -> _Planned:
    """The request for the budget nearest to that of `ANY_BUDGET` that the model and its bounds allow."""
    kind, value = ANY_BUDGET[type(config)]
    asked = config.with_budget(kind, value)
    if isinstance(asked, LayerAdaptive) and not isinstance(asked.zero_pattern, NByM):  # which says it by itself
        least, most = possible_sparsities(profiles_of(linears_of(model), asked))
        asked = asked.with_budget(kind, min(max(value, least), most))
    return cast("_Planned", asked)


@overload
def plan(
    model: nn.Module,
    config: Structured,
    data: Iterable[Batch],
    *,
    around: Sequence[float] = ...,
    filter: Callable[[Site], bool] | None = ...,
    progress: bool = ...,
) -> UnitPlan: ...


@overload
def plan(
    model: nn.Module,
    config: LayerAdaptive,
    data: Iterable[Batch],
    *,
    around: Sequence[float] = ...,
    filter: Callable[[Site], bool] | None = ...,
    progress: bool = ...,
) -> WeightPlan: ...


def plan(
    model: nn.Module,
    config: Structured | LayerAdaptive,
    data: Iterable[Batch],
    *,
    around: Sequence[float] = (),
    filter: Callable[[Site], bool] | None = None,
    progress: bool = False,
) -> UnitPlan | WeightPlan:
    """What `prune_` with these arguments would remove from `model`, which is left as it is; see `niwaki.Plan`.

    The model is observed and scored once: `plan.at` is the cut for another budget. The losses that the allocation
    `search` goes by are measured around the sparsity asked, and around each of `around`: at one of these, too, the plan
    is what `prune_` would do.

    Raises:
        RequestError: as `prune_`; several steps, layers that go whole: they are observed more than once.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    check_kind("config", config, (Structured, LayerAdaptive), "Structured or LayerAdaptive")
    check_kind("around", around, Sequence, "a list of sparsities")
    if wrong := [each for each in around if not isinstance(each, Real) or not 0.0 <= each < 1.0]:
        raise RequestError(f"around must be fractions of zeros in [0, 1), got {wrong[0]!r}")
    check_plannable(config, "a plan")
    if filter is not None:
        config = _sparing(model, config, filter)
    with seeded(config.seed), gradients_on(), as_held(model):
        check_model(model)
        batches = checked_batches(accepts_of(model), data)
        check_enough(batches)
        if isinstance(config, LayerAdaptive):
            made = plan_weights(model, config, batches, around=around, progress=progress)
        else:
            made = plan_units(model, config.resolved(), batches, progress=progress)
    if count() > 1:  # each process has seen the tokens of its own share, and the next launch may share otherwise
        made = dataclasses.replace(made, seen=Seen())
    return dataclasses.replace(made, origin=Origin.of(model, batches))


def apply_(
    model: nn.Module,
    plan: Plan,
    data: Iterable[Batch] | None = None,
    *,
    training_data: Iterable[Batch] | None = None,
    progress: bool = False,
) -> StageResult:
    """Remove from `model` in place what `plan` says and repair what is left as its request asks; says what was done.

    With the `data` that the plan was made from this is what `prune_` does. On other data, or on other weights of the
    same shapes (which is a warning), the plan says what goes, and what the repair looks at is observed anew; FLOPs are
    counted at the mean length of its rows, so that the budget is met there. Without `data` nothing is repaired or
    recovered: units are cut, and weights chosen by their magnitude or at random; what else ranks weights needs data.

    Raises:
        RequestError: before any work: a plan of a model of other shapes; no data for a score or a recovery that needs
            them; as `prune_`.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    check_kind("plan", plan, Plan, "a plan (niwaki.Plan.load reads the folder of one)")
    with seeded(plan.config.seed), gradients_on(), as_held(model):
        check_model(model)
        check_unmoved(model)
        plan.check_fits(model)
        batches: list[Batch] = []
        if data is None:
            plan = _without_repair(plan)
        else:
            batches = checked_batches(accepts_of(model), data)
            check_enough(batches)
            plan = plan.at_length(model, mean_length(batches))
        recovery = recovery_data(model, plan.config, training_data, batches)
        warnings: tuple[str, ...] = ()
        if plan.origin is not None and data is not None:
            other = plan.origin.model != model_digest(model)
            as_seen = not other and plan.origin.data == data_digest(batches)
            plan = dataclasses.replace(plan, seen=plan.seen.of_process(batches) if as_seen else Seen())
            warnings = ("plan: it was made from other weights than this model's",) * other
        if isinstance(plan, WeightPlan):
            done = apply_weights_(model, plan, batches, recovery, progress=progress)
        else:
            assert isinstance(plan, UnitPlan), "there are two kinds of plan"
            done = apply_units_(model, plan, batches, recovery, progress=progress)
    forget_base_(model)
    return dataclasses.replace(done, warnings=(*warnings, *done.warnings))


def _without_repair(plan: Plan) -> Plan:
    """The plan with nothing that needs data.

    Raises:
        RequestError: naming what does.
    """
    config = plan.config
    if config.recover_epochs:
        raise RequestError(f"data must be given for recover_epochs {config.recover_epochs}, got none")
    if isinstance(config, LayerAdaptive) and config.weight_score not in WITHOUT_DATA:
        raise RequestError(f"data must be given for weight_score {config.weight_score!r}, got none")
    fast = {"fast": False} if isinstance(config, LayerAdaptive) else {}
    return dataclasses.replace(plan, config=dataclasses.replace(config, repair="none", reconstruct="none", **fast))


def _sparing(model: nn.Module, config: _Config, keep: Callable[[Site], bool]) -> _Config:
    spared = tuple(site.name for site in sites_of(model) if not keep(site))
    return dataclasses.replace(config, spared=(*(config.spared or ()), *spared))


def score(
    model: nn.Module,
    data: Iterable[Batch],
    config: Structured | LayerAdaptive | None = None,
    *,
    filter: Callable[[Site], bool] | None = None,
    progress: bool = False,
) -> Scores:
    """Importance only: higher is more important. Nothing is pruned.

    As `Structured` scores (the default): of heads and neurons, by site. As `LayerAdaptive` does: of linears; give it a
    `layer_score` (and an allocation that looks at it) for an `importance`. Sites of which `filter` says False are left
    out.

    Raises:
        RequestError: the model is not supported, no batches, or none with labels for a score that needs them.
        WorkError: a statistic that is not finite.
    """
    config = config or Structured(flops=1.0)
    check_kind("config", config, (Structured, LayerAdaptive), "Structured or LayerAdaptive")
    with seeded(config.seed), gradients_on(), as_held(model):
        check_model(model)
        batches = checked_batches(accepts_of(model), data)
        check_enough(batches)
        if isinstance(config, LayerAdaptive):
            found = score_weights(model, batches, config.resolved(), progress=progress)
            sites = {linear.name: linear.site for linear in linears_of(model)}
        else:
            found = score_units_of(model, batches, config, progress=progress)
            sites = {site.name: site for site in sites_of(model)}
    for name in [name for name in found if filter is not None and not filter(sites[name])]:
        del found[name]
        found.importance.pop(name, None)
    return found
