"""What the stages of a recipe work on: the model with its tokenizer, and the rows that were cut for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from niwaki.anatomy import CLASSIFIER, LANGUAGE_MODEL
from niwaki.checkpoint import task_of_checkpoint
from niwaki.config import DynamicSparsityTraining, Finetune, Recipe, Stage, Vocabulary
from niwaki.data import Batches, Table, class_ids, label_names, mean_length, predicts_numbers, sample
from niwaki.errors import RequestError
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
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
    language = _predicts_tokens(recipe)
    if language:
        _check_apart(recipe, train, evaluation)
    else:
        check_labelled(evaluation, "eval_data")
    with seeded(recipe.seed):  # Transformers draws a new task head from the global state
        inputs = read_inputs(recipe, None if language else _new_labels(recipe, train), quiet)
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


def _predicts_tokens(recipe: Recipe) -> bool:
    """Whether the work is on a language model: the checkpoint is one, and no classifier is asked for in its place."""
    own = task_of_checkpoint(recipe.model, recipe.base_model)
    return own is LANGUAGE_MODEL and recipe.task != CLASSIFIER.name


def _new_labels(recipe: Recipe, train: Table) -> list[str] | None:
    """Names of the classes for a model that first learns from labels: `[""]` stands for one number to predict."""
    learns = [_learns_labels(stage) for stage in recipe.stages if not isinstance(stage, Vocabulary)]
    if any(learns):
        check_labelled(train, "train_data")
    if not any(learns[:1]):
        return None
    if predicts_numbers(train):
        return [""]
    names = label_names(train)
    if recipe.label_names is not None:
        names = list(recipe.label_names)
        class_ids(train, {name: index for index, name in enumerate(names)}, named=True)  # refuses other labels
    if len(names) < 2:
        raise RequestError(f"train_data must have at least two classes to fine-tune on, got only {names[0]!r}")
    return names


def _learns_labels(stage: Stage) -> bool:
    return isinstance(stage, Finetune) or (isinstance(stage, DynamicSparsityTraining) and stage.teacher == "none")
