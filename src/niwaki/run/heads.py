"""Which head the model of a recipe is to have: its own, or a new one for what the data are labelled with."""

from __future__ import annotations

from niwaki.anatomy import ANSWERER, BODY, CHOOSER, CLASSIFIER, LANGUAGE_MODEL, TAGGER, TASKS, Task
from niwaki.checkpoint import NewLabels, task_of_checkpoint
from niwaki.config import DynamicSparsityTraining, Finetune, Recipe, Stage, Vocabulary
from niwaki.data import Table, class_ids, label_names, predicts_numbers
from niwaki.data.labels import check_numbers
from niwaki.data.several import several_names
from niwaki.data.tagged import tag_names
from niwaki.errors import RequestError
from niwaki.run.inputs import check_labelled, without_head


def task_to_be(recipe: Recipe, train: Table) -> Task:
    """The task of the model that is worked on: what is asked for, or else its own, or what the data are for.

    A head of pretraining is kept where it is asked for by name, and that of a language model unless another is; it goes
    where a model without a head is asked for.

    Raises:
        RequestError: a task that the model is not for, and that no head can be made for.
    """
    own = task_of_checkpoint(recipe.model, recipe.base_model)
    if own.pretraining and without_head(recipe) and not _learns_first(recipe):
        return BODY
    if recipe.task is not None:
        asked = next(task for task in TASKS if task.name == recipe.task)
        if asked is not own and (asked.pretraining or not own.pretraining):
            rule = f"task must be {own.name} for {own.what}"
            if own.pretraining:
                rule += f", or one that a new head is made for ({', '.join(task.name for task in _NEW)})"
            raise RequestError(f"{rule}, got {recipe.task!r}")
        return asked
    if own is LANGUAGE_MODEL or not _learns_first(recipe) or not own.pretraining:
        return own
    if train.ids is not None:
        return ANSWERER
    if train.choices:
        return CHOOSER
    return TAGGER if train.tagged else CLASSIFIER


_NEW = (CLASSIFIER, TAGGER, ANSWERER, CHOOSER)
"""Tasks that a new head can be made for from the data."""


def _learns_first(recipe: Recipe) -> bool:
    """Whether the first stage that is not of the vocabulary trains on labels, so that a new head makes sense."""
    stages = [stage for stage in recipe.stages if not isinstance(stage, Vocabulary)]
    return bool(stages) and _learns_labels(stages[0])


def new_labels(recipe: Recipe, train: Table, task: Task) -> NewLabels | None:
    """What a new head is to give, for a model that first learns from labels; None where its own is kept.

    Raises:
        RequestError: data without labels where a stage learns from them, labels that a head cannot be made for.
    """
    if task.pretraining:
        return None
    if any(_learns_labels(stage) for stage in recipe.stages):
        check_labelled(train, "train_data")
    if not _learns_first(recipe):
        return None
    if task in (ANSWERER, CHOOSER):
        return NewLabels((), task)
    if task is TAGGER:
        if not train.tagged:
            rule = "train_data must be words with tags (CoNLL, or `tokens` with `tags`) for token-classification"
            raise RequestError(f"{rule}, got texts in {train.path!r}")
        return NewLabels(tuple(recipe.label_names or tag_names(train)), task)
    if train.several:
        return NewLabels(tuple(recipe.label_names or several_names(train)), task, "multi_label_classification")
    check_numbers(train)
    if predicts_numbers(train):
        return NewLabels(("",), task)
    names = label_names(train)
    if recipe.label_names is not None:
        names = list(recipe.label_names)
        class_ids(train, {name: index for index, name in enumerate(names)}, named=True)  # refuses other labels
    if len(names) < 2:
        raise RequestError(f"train_data must have at least two classes to fine-tune on, got only {names[0]!r}")
    return NewLabels(tuple(names), task)


def _learns_labels(stage: Stage) -> bool:
    return isinstance(stage, Finetune) or (isinstance(stage, DynamicSparsityTraining) and stage.teacher == "none")
