"""A recipe from request to finished folder: read, check, do the stages, measure, write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from niwaki.adapters import masks_of, merge_, remove_masks_
from niwaki.anatomy import linears_of, pooling_of, supported_task
from niwaki.checkpoint import check_adapter_left, weight_files, write_adapter, write_model
from niwaki.checkpoint.folder import kept_beside
from niwaki.checkpoint.source_card import source_card
from niwaki.config import Recipe, recipe_to_dict, write_recipe
from niwaki.evaluate import behaviour
from niwaki.methods.plan import Plan
from niwaki.processes import from_first, is_first, meet
from niwaki.progress import job
from niwaki.report import model_card, page
from niwaki.results import Result, write_result
from niwaki.run.checks import check_recipe
from niwaki.run.effort import step_costs
from niwaki.run.folder import workplace
from niwaki.run.inputs import check_out
from niwaki.run.kept import Kept, kept_stages
from niwaki.run.layers import layers_left
from niwaki.run.likeness import Side, likeness
from niwaki.run.record import Clock, State, says_nothing, time_in_turn
from niwaki.run.stages import Course, first_removing, measure_state, run_stages
from niwaki.run.tasks import Tasks, read_tasks
from niwaki.run.work import Work, read_work


def run_recipe(recipe: Recipe, quiet: bool = False) -> Result:
    """Do all that a recipe asks and write its folder; nothing is left there if anything fails.

    Of several processes (see `niwaki.processes`) the first alone takes times and writes.

    Raises:
        RequestError: the request is wrong. WorkError: the work failed.
    """
    meet()
    clock, quiet = Clock(), quiet or not is_first()
    read = (recipe.model, recipe.base_model, recipe.train_data, recipe.eval_data)
    check_out(recipe.out, *read, *recipe.task_files, *recipe.plans)
    with workplace(recipe, quiet) as folder:
        tasks = read_tasks(recipe, quiet)
        work = read_work(recipe, quiet)
        check_recipe(work)
        with kept_stages(Path(from_first(lambda: str(kept_beside(folder)))), work, tasks) as kept:
            return do_recipe(work, tasks, folder, clock, Known(kept=kept))


@dataclass(frozen=True)
class Known:
    """What is known already: of an earlier run, and of runs of one model on the same data, see `niwaki.run.sweep`."""

    kept: Kept | None = None
    """Stages that are done, and where to keep others."""
    dense: State | None = None
    """The model as it came in, measured on the evaluation data."""
    plan: Plan | None = None
    """One for the first stage, for any of its budgets."""
    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which nothing else runs on this machine, to time in."""


def do_recipe(work: Work, tasks: Tasks, folder: Path, clock: Clock, known: Known) -> Result:
    """Do the stages of the recipe of `work`, measure, and write all files of it into `folder`.

    Raises:
        RequestError: a stage cannot be done. WorkError: the work failed.
    """
    data = work.described()  # as the model's own tokenizer cuts them
    with job(step_costs(work, known.dense is not None)) as steps:
        course = run_stages(work, tasks, folder, known.kept, steps, known.dense, known.plan)
        steps.begin(2 * len(course.stages))
        return _finish(course, tasks, data, folder, clock, known)


def _finish(course: Course, tasks: Tasks, data: dict[str, Any], folder: Path, clock: Clock, known: Known) -> Result:
    """Measure what the stages left and write all files; `data` says how the model's own tokenizer cuts them."""
    recipe = course.work.recipe
    masks = masks_of(course.work.model)
    sizes = {linear.name: linear.size for linear in linears_of(course.work.model)}
    kept = sizes | {name: int(mask.sum()) for name, mask in masks.items()}
    plain = _write_weights(course, folder)
    course.first.inputs.weights.check()
    states = [*course.states, measure_state(course.work, plain, tasks, len(course.stages))]
    if recipe.compact:
        states[-1].record["size_bytes"] = from_first(lambda: sum(file.stat().st_size for file in weight_files(folder)))
    result = _result(course, states, plain, kept, data | tasks.to_dict(), clock, known.alone)
    write_recipe(recipe, folder / "recipe.yaml")
    write_result(result, folder / "result.json")
    task, sentences = supported_task(plain).name, pooling_of(plain) is not None
    source = source_card(recipe.model)
    card = model_card(result, task=task, sentences=sentences, masks=bool(masks), source=source)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "report.html").write_text(page([result]), encoding="utf-8")
    return result


def _write_weights(course: Course, folder: Path) -> PreTrainedModel:
    """Write the model that the stages left; returns it without adapters and masks, as others load it."""
    work, recipe = course.work, course.work.recipe
    tuned = work.model if recipe.keep_adapter and isinstance(work.model, PeftModel) else None
    if is_first() and tuned is not None:
        check_adapter_left(tuned)
        write_adapter(tuned, folder, Path(recipe.out), work.inputs.tokenizer)
    plain = merge_(work.model)
    if is_first() and tuned is None:
        write_model(plain, folder, work.inputs.tokenizer, recipe.compact)
    remove_masks_(plain)
    return plain


def _result(
    course: Course,
    states: list[State],
    plain: PreTrainedModel,
    kept: dict[str, int],
    data: dict[str, Any],
    clock: Clock,
    alone: Callable[[], AbstractContextManager[None]],
) -> Result:
    """Time dense and pruned in turn and gather all that was measured; `kept` counts the weights that are left."""
    recipe, dense, progress = course.work.recipe, course.dense, not course.work.quiet
    came, left = states[first_removing(recipe)], states[-1]
    before, after = dict(came.record), dict(left.record)
    with alone():
        latency = time_in_turn(dense, plain, max(1, round(course.work.length)), before, after, progress)
    sizes = {linear.name: linear.size for linear in linears_of(dense)}
    first, last = course.first, course.work
    sides = (
        Side(dense, first.inputs, first.test_rows, came.judged),
        Side(plain, last.inputs, last.test_rows, left.judged),
    )
    return Result(
        run=clock.environment(recipe, course.earlier),
        recipe=recipe_to_dict(recipe),
        data=data,
        stages=[
            {**stage.to_dict(), "before": states[number].record, "after": states[number + 1].record}
            for number, stage in enumerate(course.stages)
        ],
        dense=before,
        pruned=after,
        latency=latency,
        layers=layers_left(course.stages, sizes, kept),
        warnings=[
            *(warning for stage in course.stages for warning in stage.warnings),
            *says_nothing({"the dense model": came, "what came out": left}),
        ],
        fidelity=likeness(*sides, progress=progress),
        behaviour=behaviour(came.judged, left.judged, first.evaluation.texts),
    )
