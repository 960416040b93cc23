"""What the stages of a recipe work on: the model with its tokenizer, and the rows that were cut for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from niwaki.config import Recipe
from niwaki.data import Batches, Table, apart, mean_length, sample
from niwaki.errors import RequestError
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.progress import say
from niwaki.run.heads import new_labels, task_to_be
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
    held_out: Batches | None
    """Rows of the training data that are in neither, where a stage searches its budget."""
    tests: Batches
    """All of the evaluation data."""
    test_rows: list[dict[str, Any]]
    """The same, row by row as they stand."""
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
    task = task_to_be(recipe, train)
    if task.labels == "word":
        _check_apart(recipe, train, evaluation)
    with seeded(recipe.seed):  # Transformers draws a new task head from the global state
        inputs = read_inputs(recipe, new_labels(recipe, train, task), quiet)
    work = cut_rows(recipe, inputs, train, evaluation)
    if not work.tests.labelled and task.labels != "word":
        if recipe.metric is not None:
            check_labelled(evaluation, "eval_data")
        say("validation: no labels, so fidelity to the dense model is all that is measured", quiet)
    return work


def cut_rows(recipe: Recipe, inputs: Inputs, train: Table, evaluation: Table) -> Work:
    """The rows of both tables as the tokenizer of `inputs` cuts them; samples are drawn with the recipe's seed."""
    rows, held = inputs.rows(train, "train"), []
    if recipe.keeps_quality:
        rows, held = _held_out(rows, recipe)
    calibration = list(inputs.batches(sample(rows, recipe.calibration_samples, recipe.seed)))
    training = inputs.batches(sample(rows, recipe.train_samples or len(rows), recipe.seed))
    tests = inputs.rows(evaluation, "validation")
    return Work(
        recipe=recipe,
        train=train,
        evaluation=evaluation,
        inputs=inputs,
        calibration=calibration,
        training=training,
        held_out=inputs.batches(held) if held else None,
        tests=inputs.batches(tests),
        test_rows=tests,
        length=mean_length(calibration),
    )


def _held_out(rows: list[dict[str, Any]], recipe: Recipe) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows that are looked at, and those that a budget is searched by.

    Raises:
        RequestError: no text is held out.
    """
    count = min(recipe.held_out_samples, len(rows) // 4)
    left, held = apart(rows, count, recipe.seed)
    if not held and count < len(rows) // 4:
        rule = "held_out_samples must be the rows of one text at least (a context with its questions, a long sentence)"
        raise RequestError(f"{rule}, got {count}")
    if not held:
        rule = "train_data must have rows of at least 4 texts for keep_quality to hold some out"
        raise RequestError(f"{rule}, got {len(rows)} rows")
    return left, held


def _check_apart(recipe: Recipe, train: Table, evaluation: Table) -> None:
    """Refuse to measure a language model on the text that it was fitted to."""
    same = train.sha256 == evaluation.sha256
    if train.sha256 is None:
        same = (train.path, train.split) == (evaluation.path, evaluation.split)
    if same and not recipe.same_data:
        rule = "eval_data must be another text than train_data (or ask for --same-data)"
        raise RequestError(f"{rule}, got {recipe.eval_data!r}")
