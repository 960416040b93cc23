"""What a model gives, and for what: one row a task. The one place that says what the task of a model is.

A row says how a task is asked for (`--task`), what its classes are called in Transformers, what PEFT calls it, which
class loads it, what it predicts, what its labels are, and of how many losses the model's own loss is the mean. The rest
of Niwaki asks the row, and never for a task by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from niwaki.anatomy.families import family_of
from niwaki.anatomy.pooling import pooling_of
from niwaki.anatomy.predictions import Predictions, of_choices, of_rows, of_spans, of_states, of_tokens
from niwaki.anatomy.sites import looks_back_only, unwrap
from niwaki.data.batches import UNLABELLED, token_mask, without_labels_after_padding
from niwaki.errors import RequestError

Batch = dict[str, Any]


def _rows(batch: Batch) -> int:
    return len(batch["labels"])


def _labelled(batch: Batch) -> Tensor:
    return batch["labels"] != UNLABELLED


def _before_labelled(batch: Batch) -> Tensor:
    return F.pad(batch["labels"][:, 1:] != UNLABELLED, (0, 1))


def _tokens(batch: Batch) -> int:
    return int(_labelled(batch).sum())


def _next_tokens(batch: Batch) -> int:
    return int(_before_labelled(batch).sum())


def _answers(batch: Batch) -> int:
    return int((batch["start_positions"] < batch["input_ids"].shape[-1]).sum())


@dataclass(frozen=True)
class Task:
    """One row: a task by its name, what a model of it is, and how Transformers and PEFT spell it.

    `suffixes` end the names of its classes (`config.architectures`); `peft` is the `task_type` of an adapter, None
    where PEFT has none; `auto` loads it. `pretraining` says that fine-tuning puts another head in the place of its own.
    `predicts` makes predictions of the model's `outputs`, None for a task that is not supported. `labels` says what
    labels are, see `niwaki.data.checks.Accepts`; `losses`, of a batch, how many the model's own loss is the mean of (of
    none it is not a number);
    `labelled`, of one with a label a token, at which tokens the model predicts what a label says, `[rows, length]`.
    """

    name: str
    what: str
    suffixes: tuple[str, ...]
    peft: str | None
    auto: type
    predicts: Callable[[Any, Tensor, Any], Predictions] | None = None
    labels: str = "none"
    losses: Callable[[Batch], int] = _rows
    labelled: Callable[[Batch], Tensor] | None = None
    pretraining: bool = False
    outputs: tuple[str, ...] = ("logits",)

    @property
    def supported(self) -> bool:
        """Whether models of it can be pruned."""
        return self.predicts is not None


CLASSIFIER = Task(
    "text-classification",
    "a sequence classifier",
    ("ForSequenceClassification",),
    "SEQ_CLS",
    AutoModelForSequenceClassification,
    of_rows,
    "row",
)
LANGUAGE_MODEL = Task(
    "causal",
    "a language model",
    ("ForCausalLM", "LMHeadModel"),
    "CAUSAL_LM",
    AutoModelForCausalLM,
    of_tokens,
    "word",
    _next_tokens,
    _before_labelled,
    pretraining=True,
)
TAGGER = Task(
    "token-classification",
    "a token classifier",
    ("ForTokenClassification",),
    "TOKEN_CLS",
    AutoModelForTokenClassification,
    of_tokens,
    "token",
    _tokens,
    _labelled,
)
ANSWERER = Task(
    "question-answering",
    "a model that answers questions",
    ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    "QUESTION_ANS",
    AutoModelForQuestionAnswering,
    of_spans,
    "span",
    _answers,
    outputs=("start_logits", "end_logits"),
)
CHOOSER = Task(
    "multiple-choice",
    "a model that chooses among several texts",
    ("ForMultipleChoice",),
    None,
    AutoModelForMultipleChoice,
    of_choices,
    "choice",
)
BODY = Task(
    "embedding",
    "a model without a task head",
    ("Model",),
    "FEATURE_EXTRACTION",
    AutoModel,
    of_states,
    pretraining=True,
    outputs=("last_hidden_state",),
)

TASKS = (
    CLASSIFIER,
    LANGUAGE_MODEL,
    TAGGER,
    ANSWERER,
    CHOOSER,
    Task(
        "masked",
        "a masked language model",
        ("ForMaskedLM",),
        None,
        AutoModelForMaskedLM,
        of_tokens,
        "word",
        _tokens,
        _labelled,
        pretraining=True,
    ),
    Task("double-heads", "a language model that chooses among texts, too", ("DoubleHeadsModel",), None, AutoModel),
    Task("pretraining", "a pretraining model", ("ForPreTraining",), None, AutoModelForPreTraining, pretraining=True),
    Task(
        "seq2seq",
        "an encoder-decoder model",
        ("ForConditionalGeneration", "ForSeq2SeqLM"),
        "SEQ_2_SEQ_LM",
        AutoModelForSeq2SeqLM,
    ),
    BODY,  # last: names of classes with a head can end in Model too
)


def task_named(classes: Iterable[str]) -> Task | None:
    """The first task of the table that one of these classes is for; None where none of them has a row."""
    names = list(classes)
    return next((task for task in TASKS if any(name.endswith(task.suffixes) for name in names)), None)


def task_of(model: nn.Module) -> Task | None:
    """The task of a model, by its class or one that it is derived from; None for a task that has no row.

    A language model is one of a family of decoders that attends to the past alone: an encoder with such a head is none.
    """
    inner = unwrap(model)
    # What all models are derived from says nothing of any.
    classes = (kind.__name__ for kind in type(inner).__mro__ if not kind.__name__.endswith("PreTrainedModel"))
    task = task_named(classes)
    return None if task is LANGUAGE_MODEL and not (family_of(inner).causal and looks_back_only(inner)) else task


def is_language_model(model: nn.Module) -> bool:
    """Whether the model predicts the next token at every position."""
    return task_of(model) is LANGUAGE_MODEL


def is_regression(model: nn.Module) -> bool:
    """Whether the model gives one number a row."""
    config = unwrap(model).config
    several = config.problem_type == "multi_label_classification"
    return task_of(model) is CLASSIFIER and config.num_labels == 1 and not several


def labels_of(model: nn.Module) -> str:
    """What the labels of a model are: those of its task, and of a model of rows `class`, `number` or `several`."""
    labels = supported_task(model).labels
    if labels != "row":
        return labels
    several = unwrap(model).config.problem_type == "multi_label_classification"
    return "several" if several else "number" if is_regression(model) else "class"


def note_problem_(model: nn.Module) -> None:
    """Write into the config of a classifier what its labels are, as Transformers does when it takes the first loss.

    A training that goes on may have no loss left to take.
    """
    problem = {"class": "single_label_classification", "number": "regression"}.get(labels_of(model))
    if task_of(model) is CLASSIFIER and problem is not None:
        cast(Any, unwrap(model).config).problem_type = problem


def one_a_row(model: nn.Module) -> bool:
    """Whether a model says one thing of every row, into whichever tokens it is cut."""
    return supported_task(model).labels in ("row", "choice") or pooling_of(model) is not None


def supported_task(model: nn.Module) -> Task:
    """The task of a model that can be pruned.

    Raises:
        RequestError: one of no task here.
    """
    task, kind = task_of(model), type(unwrap(model)).__name__
    if task is None or not task.supported:
        known = ", ".join(dict.fromkeys(suffix for row in TASKS if row.supported for suffix in row.suffixes[:1]))
        raise RequestError(f"model must be of a class whose name ends in {known}, got {kind}")
    return task


def predictions_of(model: nn.Module, outputs: Any, keep: Tensor) -> Predictions:
    """What `outputs` of `model` say; `keep` `[sequences, length]` is True at real tokens.

    Raises:
        RequestError: see `supported_task`.
    """
    predicts = supported_task(model).predicts
    assert predicts is not None
    return predicts(outputs, keep, unwrap(model))


def predicted_tokens(model: nn.Module, batch: Batch) -> Tensor:
    """`[sequences, length]`, True at the tokens of `batch` of which what the model says is to be looked at.

    Where labels stand at tokens those at which one is predicted: what a model of masked words says of a word that it
    sees, or a tagger of the inside of one, is nothing that was asked. Else all real tokens.
    """
    labelled, real = supported_task(model).labelled, token_mask(batch).bool()
    return real if labelled is None or "labels" not in batch else labelled(batch) & real


def with_labels(model: nn.Module, batch: Batch) -> Batch:
    """The batch of a language model with the labels it lacks: its inputs (the model shifts them), -100 for padding.

    Labels that it has stay, but those after padding. A batch of any other model is given back as it is.
    """
    if not is_language_model(model):
        return batch
    if "labels" not in batch:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        batch = {**batch, "labels": ids if mask is None else ids.masked_fill(mask == 0, UNLABELLED)}
    return without_labels_after_padding(batch)
