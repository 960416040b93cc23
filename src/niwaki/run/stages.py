"""The stages of a recipe in order; what the model is worth is measured once between any two of them.

The states of the model are `state 0, stage 1, state 1, ..., stage n, state n`: the state after a stage is the state
before the next. Dense is the state before the first stage that removes something; where none does, the model that came
in.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import is_language_model
from niwaki.checkpoint import new_parameters
from niwaki.config import STAGES, DynamicSparsityTraining, Finetune, Recipe, Stage, Vocabulary
from niwaki.evaluate.plain import plain_model
from niwaki.methods.dynamic import train_dynamic, write_training
from niwaki.methods.finetune import finetune
from niwaki.methods.prune import prune_
from niwaki.methods.vocabulary import retokenised, trim_vocabulary_
from niwaki.progress import say
from niwaki.results import StageResult
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


def run_stages(work: Work, tasks: Tasks, folder: Path) -> Course:
    """Measure the model and do the next stage, for all stages; what a training leaves is written into `folder`.

    Raises:
        RequestError: a stage cannot be done. WorkError: the work failed, or a task's data could not be read.
    """
    recipe, came = work.recipe, work
    first, count = first_removing(recipe), len(recipe.stages)
    dense: PreTrainedModel | None = None
    stages: list[StageResult] = []
    states: list[State] = []
    for number, stage in enumerate(recipe.stages):
        if number == first:
            dense = merge_(copy.deepcopy(work.model))
            remove_masks_(dense)
            states.append(measure_state(work, dense, tasks, number))
        else:
            states.append(measure_state(work, plain_model(work.model), tasks, number))
        name = next(name for name, kind in STAGES.items() if isinstance(stage, kind))
        say(f"stage {number + 1} of {count}: {name}", work.quiet)
        work, done = _do(work, stage, folder)
        stages.append(done)
    assert dense is not None, "a recipe has a stage"
    return Course(came, work, dense, stages, states)


def first_removing(recipe: Recipe) -> int:
    """Index of the first stage that removes something, 0 where none does."""
    return next((index for index, stage in enumerate(recipe.stages) if not isinstance(stage, Finetune)), 0)


def measure_state(work: Work, plain: nn.Module, tasks: Tasks, number: int) -> State:
    """What the model `plain` is worth after `number` stages: quality, counts, size; `new_head` if that is untrained."""
    state = measure(plain, work.tests, work.length, work.recipe.metric)
    note_means(state.record, tasks.measure(plain, work.inputs))
    trained = any(isinstance(stage, Finetune | DynamicSparsityTraining) for stage in work.recipe.stages[:number])
    if new_parameters(work.model) and not trained:
        state.record["new_head"] = True
    return state


def _do(work: Work, stage: Stage, folder: Path) -> tuple[Work, StageResult]:
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
        case _:
            done = prune_(model, stage, work.calibration, training_data=work.training, progress=progress)
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
