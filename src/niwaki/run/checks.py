"""What cannot be done is refused here, before anything is trained, cut or measured."""

from __future__ import annotations

from peft import PeftModel

from niwaki.anatomy import supported_task
from niwaki.config import DynamicSparsityTraining, Finetune, Stage, Structured, Vocabulary
from niwaki.config.planned import Planned
from niwaki.errors import RequestError
from niwaki.evaluate import check_metric
from niwaki.methods.dynamic import plan_schedule
from niwaki.methods.plan import Plan
from niwaki.methods.structured import checked_budgets
from niwaki.methods.vocabulary import check_trimmable
from niwaki.run.inputs import check_labelled
from niwaki.run.memory import check_memory
from niwaki.run.tasks import check_asked
from niwaki.run.work import Work


def check_recipe(work: Work) -> None:
    """Hold what a recipe asks against its model and data.

    Raises:
        RequestError: for the first thing that cannot be done.
    """
    recipe, model = work.recipe, work.model
    check_metric(model, recipe.metric)
    check_asked(recipe, model)
    attaches = any(isinstance(stage, Finetune | DynamicSparsityTraining) for stage in recipe.stages)
    if recipe.keep_adapter and not (attaches or isinstance(model, PeftModel)):
        raise RequestError(f"keep_adapter needs a model with an adapter, got {recipe.model!r}")
    for stage in recipe.stages:
        _check_stage(work, stage)
    if recipe.memory_limit is not None:
        # The dense model is held beside the one that is worked on.
        check_memory(recipe.memory_limit, model, recipe.stages, work.calibration, copies=1)


def _check_stage(work: Work, stage: Stage) -> None:
    if isinstance(stage, Planned):
        if stage.plan is not None:
            Plan.load(stage.plan)
        if stage.keep_quality is not None and not (work.held_out and work.held_out.labelled):
            check_labelled(work.train, "train_data")
            rule = "keep_quality must be a budget for a model of which no rows are held out to measure it on"
            raise RequestError(f"{rule}, got {stage.keep_quality:g} for {supported_task(work.model).what}")
    match stage:
        case Structured() if stage.latency is None:
            meant = stage if stage.keep_quality is None else stage.with_budget("flops", 1.0)
            checked_budgets(work.model, meant.resolved(), work.length)
        case DynamicSparsityTraining():
            plan_schedule(stage, stage.epochs * len(work.training))
        case Vocabulary():
            check_trimmable(work.model, work.inputs.tokenizer)
