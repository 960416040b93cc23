"""What cannot be done is refused here, before anything is trained, cut or measured."""

from __future__ import annotations

from peft import PeftModel

from niwaki.anatomy import linears_of, supported_task
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Stage, Structured, Training, Vocabulary
from niwaki.config.planned import Planned
from niwaki.errors import RequestError
from niwaki.evaluate import check_metric
from niwaki.methods.dynamic import plan_schedule
from niwaki.methods.layer_adaptive import check_weights
from niwaki.methods.plan import Plan
from niwaki.methods.prune import for_any_budget
from niwaki.methods.structured import check_timed, checked_budgets
from niwaki.methods.vocabulary import check_trimmable
from niwaki.run.inputs import check_labelled
from niwaki.run.memory import check_memory
from niwaki.run.order import check_order
from niwaki.run.pass_memory import largest
from niwaki.run.tasks import check_asked
from niwaki.run.work import Work
from niwaki.train.data import check_held_out, hold_out
from niwaki.train.loop import steps_of


def check_recipe(work: Work) -> None:
    """Hold what a recipe asks against its model and data.

    Raises:
        RequestError: for the first thing that cannot be done.
    """
    recipe, model = work.recipe, work.model
    check_metric(model, recipe.metric)
    check_asked(recipe, model)
    if recipe.keep_adapter and not (isinstance(model, PeftModel) or any(map(_attaches, recipe.stages))):
        raise RequestError(
            f"keep_adapter needs a model with an adapter, or a stage that trains one, got {recipe.model!r}"
        )
    check_order(model, recipe.stages)
    for number, stage in enumerate(recipe.stages):
        # What stages before it leave of the shapes and zeros is known once they are done.
        as_it_comes = all(isinstance(before, Finetune | Vocabulary) for before in recipe.stages[:number])
        _check_stage(work, stage, as_it_comes)
    if recipe.memory_limit is not None:
        # The dense model is held beside the one that is worked on.
        batches = largest(work.training), largest(work.tests)
        check_memory(recipe.memory_limit, model, recipe.stages, work.calibration, 1, *batches)


def _attaches(stage: Stage) -> bool:
    """Whether the stage leaves an adapter on a model that has none."""
    return isinstance(stage, DynamicSparsityTraining) or (isinstance(stage, Finetune) and not stage.full)


def _check_stage(work: Work, stage: Stage, as_it_comes: bool) -> None:
    """Refuse a stage that cannot be done; `as_it_comes` is whether it has the linears and units of the model of `work`.

    Raises:
        RequestError: naming what cannot be.
    """
    if isinstance(stage, Training):
        check_held_out(stage, work.training)
    if isinstance(stage, Planned):
        if stage.plan is not None:
            _check_plan(work, stage, stage.plan, as_it_comes)
        if stage.keep_quality is not None and not (work.held_out and work.held_out.labelled):
            check_labelled(work.train, "train_data")
            rule = "keep_quality must be a budget for a model of which no rows are held out to measure it on"
            raise RequestError(f"{rule}, got {stage.keep_quality:g} for {supported_task(work.model).what}")
    match stage:
        case Structured() if stage.latency is None:
            meant = stage if stage.keep_quality is None else stage.with_budget("flops", 1.0)
            checked_budgets(work.model, meant.resolved(), work.length)
        case Structured():
            check_timed(work.model, stage.resolved())
        case LayerAdaptive() if as_it_comes:
            meant = stage if stage.keep_quality is None else for_any_budget(work.model, stage)
            check_weights(work.model, linears_of(work.model), meant.resolved())
        case DynamicSparsityTraining():
            training, _ = hold_out(work.training, stage.seed) if stage.early_stopping else (work.training, [])
            plan_schedule(stage, len(steps_of(training, stage.epochs, stage)))
        case Vocabulary():
            check_trimmable(work.model, work.inputs.tokenizer)


def _check_plan(work: Work, stage: Planned, path: str, as_it_comes: bool) -> None:
    """Refuse a plan that a stage cannot go by.

    Raises:
        RequestError: it cannot be read; it is one of another request or of another model.
    """
    made = Plan.load(path)
    if as_it_comes:
        made.check_fits(work.model)
        if stage.keep_quality is None:
            made.under(stage).at_length(work.model, work.length)
