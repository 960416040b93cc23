"""What the stages of a recipe work on: the model with its tokenizer, and the rows that were cut for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from niwaki.anatomy import ANSWERER, CLASSIFIER, LANGUAGE_MODEL, TAGGER, TASKS, Task
from niwaki.checkpoint import NewLabels, task_of_checkpoint
from niwaki.config import DynamicSparsityTraining, Finetune, Recipe, Stage, Vocabulary
from niwaki.data import Batches, Table, class_ids, label_names, mean_length, predicts_numbers, sample
from niwaki.data.several import several_names
from niwaki.data.tagged import tag_names
from niwaki.errors import RequestError
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.progress import say
from niwaki.run.inputs import Inputs, check_labelled, read_data, read_inputs


@dataclass(frozen=True)
class Work:
    """A model on its way through the stages, and its data; a stage gives the next one."""

    recipe: Recipe
    train: Table
    evaluation: Table
    inputs: Inputs
    calibration: list[Batch]
    """Batches of a sample of the training data, to look at."""
    training: Batches
    tests: Batches
    """All of the evaluation data."""
    length: float
    """Mean number of real tokens of a calibration row as the first tokenizer cuts it: what FLOPs are counted at."""

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model as it stands."""
        return self.inputs.model

    @property
    def quiet(self) -> bool:
        """Whether nothing is said."""
        return self.inputs.quiet

    def with_model(self, model: PreTrainedModel | PeftModel) -> Work:
        """The same work on another model of the same tokenizer."""
        return dataclasses.replace(self, inputs=dataclasses.replace(self.inputs, model=model))

    def with_tokenizer(self, tokenizer: Any) -> Work:
        """The same work with all rows cut anew; what was said of them is not said again."""
        inputs = dataclasses.replace(self.inputs, tokenizer=tokenizer, quiet=True, protocols={})
        cut = cut_rows(self.recipe, inputs, self.train, self.evaluation)
        return dataclasses.replace(cut, inputs=dataclasses.replace(inputs, quiet=self.quiet), length=self.length)

    def tests_in_order(self, model: PreTrainedModel) -> Batches:
        """All of the evaluation data for `model`, which has the tokenizer of this work, row by row as they stand."""
        inputs = dataclasses.replace(self.inputs, model=model, quiet=True)
        return inputs.batches(inputs.rows(self.evaluation, "validation"), sort_by_length=False)

    def described(self) -> dict[str, Any]:
        """The `data` of `result.json`."""
        described = self.inputs.described
        return {"train": described(self.train, "train"), "eval": described(self.evaluation, "validation")}


def read_work(recipe: Recipe, quiet: bool) -> Work:
    """Read data and model of a recipe, cut the rows, and say what was recognised.

    Raises:
        RequestError: a model or data that cannot be read or do not fit each other.
    """
    train = read_data(recipe, recipe.train_data, "train", quiet)
    evaluation = read_data(recipe, recipe.eval_data, "validation", quiet)
    task = _task_to_be(recipe, train)
    if task.labels == "word":
        _check_apart(recipe, train, evaluation)
    elif evaluation.labels is None:
        if recipe.metric is not None:
            check_labelled(evaluation, "eval_data")
        say("validation: no labels, so fidelity to the dense model is all that is measured", quiet)
    with seeded(recipe.seed):  # Transformers draws a new task head from the global state
        inputs = read_inputs(recipe, _new_labels(recipe, train, task), quiet)
    return cut_rows(recipe, inputs, train, evaluation)


def cut_rows(recipe: Recipe, inputs: Inputs, train: Table, evaluation: Table) -> Work:
    """The rows of both tables as the tokenizer of `inputs` cuts them; samples are drawn with the recipe's seed."""
    rows = inputs.rows(train, "train")
    calibration = list(inputs.batches(sample(rows, recipe.calibration_samples, recipe.seed)))
    training = inputs.batches(sample(rows, recipe.train_samples or len(rows), recipe.seed))
    tests = inputs.batches(inputs.rows(evaluation, "validation"))
    return Work(recipe, train, evaluation, inputs, calibration, training, tests, mean_length(calibration))


def _check_apart(recipe: Recipe, train: Table, evaluation: Table) -> None:
    """Refuse to measure a language model on the text that it was fitted to."""
    same = train.sha256 == evaluation.sha256
    if train.sha256 is None:
        same = (train.path, train.split) == (evaluation.path, evaluation.split)
    if same and not recipe.same_data:
        rule = "eval_data must be another text than train_data (or ask for --same-data)"
        raise RequestError(f"{rule}, got {recipe.eval_data!r}")


def _task_to_be(recipe: Recipe, train: Table) -> Task:
    """The task of the model that is worked on: what is asked for, or else its own, or what the data are for.

    A head of pretraining is kept where it is asked for by name, and that of a language model unless another is.

    Raises:
        RequestError: a task that the model is not for, and that no head can be made for.
    """
    own = task_of_checkpoint(recipe.model, recipe.base_model)
    if recipe.task is not None:
        asked = next(task for task in TASKS if task.name == recipe.task)
        if asked is not own and (asked.pretraining or not own.pretraining):
            new = (
                ""
                if not own.pretraining
                else f", or one that a new head is made for ({', '.join(t.name for t in _NEW)})"
            )
            raise RequestError(f"task must be {own.name} for {own.what}{new}, got {recipe.task!r}")
        return asked
    if own is LANGUAGE_MODEL or not _learns_first(recipe) or not own.pretraining:
        return own
    if train.ids is not None:
        return ANSWERER
    return TAGGER if train.tagged else CLASSIFIER


_NEW = (CLASSIFIER, TAGGER, ANSWERER)
"""Tasks that a new head can be made for from the data."""


def _learns_first(recipe: Recipe) -> bool:
    """Whether the first stage that is not of the vocabulary trains on labels, so that a new head makes sense."""
    stages = [stage for stage in recipe.stages if not isinstance(stage, Vocabulary)]
    return bool(stages) and _learns_labels(stages[0])


def _new_labels(recipe: Recipe, train: Table, task: Task) -> NewLabels | None:
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
    if task is ANSWERER:
        return NewLabels((), task)
    if task is TAGGER:
        if not train.tagged:
            rule = "train_data must be words with tags (CoNLL, or `tokens` with `tags`) for token-classification"
            raise RequestError(f"{rule}, got texts in {train.path!r}")
        return NewLabels(tuple(recipe.label_names or tag_names(train)), task)
    if train.several:
        return NewLabels(tuple(recipe.label_names or several_names(train)), task, "multi_label_classification")
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
