"""The stages of a recipe in order; what the model is worth is measured once between any two of them.

The states of the model are `state 0, stage 1, state 1, ..., stage n, state n`: the state after a stage is the state
before the next. Dense is the state before the first stage that removes something; where none does, the model that came
in.
"""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import remove_masks_
from niwaki.anatomy import is_language_model
from niwaki.begun import begun_kept
from niwaki.checkpoint import mapped_copy, merged, new_parameters
from niwaki.config import (
    STAGES,
    DynamicSparsityTraining,
    Finetune,
    LayerAdaptive,
    Recipe,
    Stage,
    Structured,
    Vocabulary,
)
from niwaki.evaluate import Judged
from niwaki.evaluate.plain import plain_model
from niwaki.methods.dynamic import train_dynamic, write_training
from niwaki.methods.finetune import finetune
from niwaki.methods.plan import Plan
from niwaki.methods.prune import apply_, prune_
from niwaki.methods.vocabulary import retokenised, trim_vocabulary_
from niwaki.progress import Job, say
from niwaki.results import StageResult
from niwaki.run.kept import Kept, Past
from niwaki.run.record import State, measure
from niwaki.run.tasks import Tasks, note_means
from niwaki.run.work import Work


@dataclass(frozen=True)
class Course:
    """What all stages made of a model."""

    first: Work
    """As it came in."""
    work: Work
    """As the last stage left it."""
    dense: PreTrainedModel
    """A copy from before the first stage that removes something, without adapters and masks."""
    stages: list[StageResult]
    states: list[State]
    """What was measured before each stage."""
    earlier: float
    """Seconds that stages took in a run that was stopped."""


def run_stages(
    work: Work,
    tasks: Tasks,
    folder: Path,
    kept: Kept | None,
    job: Job,
    dense_state: State | None = None,
    plan: Plan | None = None,
) -> Course:
    """Measure the model and do the next stage, for all stages that are not kept from an earlier run.

    What a training leaves is written into `folder`. The steps of `job` are those of `niwaki.run.effort`.

    `dense_state` is that of the model as it came in, where it was measured already; `plan` is one for the first stage,
    at any budget.

    Raises:
        RequestError: a stage cannot be done. WorkError: the work failed, a task's data could not be read, or
            the model's files were written to meanwhile.
    """
    recipe, came = work.recipe, work
    first, count = first_removing(recipe), len(recipe.stages)
    past = kept.past(first, folder) if kept is not None else Past(work, [], [], None)
    work, stages = past.work, past.results
    states = [State(record, Judged({})) for record in past.states]
    dense = _plain_copy(past.before_removal) if past.before_removal is not None else None
    if dense is not None and past.before_removal is not None:  # what it says of every row is not kept
        states[first] = measure_state(past.before_removal, dense, tasks, first)
    for number, stage in enumerate(recipe.stages[len(stages) :], len(stages)):
        job.begin(2 * number)
        if number == first:
            dense = _plain_copy(work)
            states.append(measure_state(work, dense, tasks, number, dense_state if number == 0 else None))
        else:
            states.append(measure_state(work, plain_model(work.model), tasks, number))
        name = next(name for name, kind in STAGES.items() if isinstance(stage, kind))
        say(f"stage {number + 1} of {count}: {name}", work.quiet)
        job.begin(2 * number + 1)
        with nullcontext() if kept is None else begun_kept(kept.begun(number)):
            work, done = _do(work, stage, folder, plan if number == 0 else None)
        came.inputs.weights.check()
        stages.append(done)
        if kept is not None:
            kept.add(number, work, done, states[number].record, first, folder)
    assert dense is not None, "a recipe has a stage"
    return Course(came, work, dense, stages, states, sum(done.seconds for done in past.results))


def _plain_copy(work: Work) -> PreTrainedModel:
    """A copy of the model as it stands, without adapters and masks."""
    plain = mapped_copy(merged(work.model))
    remove_masks_(plain)
    return plain


def first_removing(recipe: Recipe) -> int:
    """Index of the first stage that removes something, 0 where none does."""
    return next((index for index, stage in enumerate(recipe.stages) if not isinstance(stage, Finetune)), 0)


def measure_state(work: Work, plain: nn.Module, tasks: Tasks, number: int, known: State | None = None) -> State:
    """What the model `plain` is worth after `number` stages: quality, counts, size; `new_head` if that is untrained.

    `known` was measured of it on the same evaluation data: none of what it says of them is measured again.
    """
    if known is None:
        state = measure(plain, work.tests, work.length, work.recipe.metric, progress=not work.quiet)
        note_means(state.record, tasks.measure(plain, work.inputs))
    else:
        counted = measure(plain, None, work.length, work.recipe.metric).record
        said = {name: known.record[name] for name in ("quality", "interval", "stderr") if name in known.record}
        state = State(counted | copy.deepcopy(said), known.judged)
    trained = any(isinstance(stage, Finetune | DynamicSparsityTraining) for stage in work.recipe.stages[:number])
    if new_parameters(work.model) and not trained:
        state.record["new_head"] = True
    return state


def _do(work: Work, stage: Stage, folder: Path, plan: Plan | None) -> tuple[Work, StageResult]:
    model, progress = work.model, not work.quiet
    match stage:
        case Finetune():
            model, done = finetune(model, stage, work.training, progress=progress)
        case DynamicSparsityTraining():
            model, done, schedule, history = train_dynamic(
                model, stage, work.training, calibration=work.calibration, progress=progress
            )
            write_training(schedule, history, folder)
        case Vocabulary():
            return _trim(work, stage)
        case Structured() | LayerAdaptive() if plan is not None:
            cut = plan.under(stage)
            done = apply_(model, cut, work.calibration, training_data=work.training, progress=progress)
        case _:
            done = prune_(
                model,
                stage,
                work.calibration,
                training_data=work.training,
                held_out=work.held_out,
                metric=work.recipe.metric,
                progress=progress,
            )
    return work.with_model(model), done


def _trim(work: Work, stage: Vocabulary) -> tuple[Work, StageResult]:
    """Trim the vocabulary, and say what the new tokenizer makes of the evaluation data."""
    inputs, texts = work.inputs, work.inputs.texts(work.evaluation)
    tokenizer, done = trim_vocabulary_(work.model, inputs.tokenizer, inputs.texts(work.train), stage)
    found = retokenised(inputs.tokenizer, tokenizer, texts)
    warnings = done.warnings
    if found.changed:
        share = f"{found.gone} of the {found.before} tokens of eval_data"
        if is_language_model(work.model):
            share += " are gone and cut into others; perplexities per token are not comparable"
        else:
            share += f" are gone and cut into others, in {found.changed} of {found.texts} texts"
        warnings = (*warnings, f"vocabulary: {share}")
    details = {**done.details, "eval": found.to_dict()}
    return work.with_tokenizer(tokenizer), dataclasses.replace(done, warnings=warnings, details=details)
