"""What a model gives, and for what: one row a task. The one place that says what the task of a model is.

A row says how a task is asked for (`--task`), what its classes are called in Transformers, what PEFT calls it, and
which class loads it. Niwaki takes sequence classifiers and language models; the other rows are there so that models of
these kinds are known for what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
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
from niwaki.anatomy.sites import unwrap


@dataclass(frozen=True)
class Task:
    """One row: a task by its name, what a model of it is, and how Transformers and PEFT spell it.

    `suffixes` end the names of its classes (`config.architectures`); `peft` is the `task_type` of an adapter, None
    where PEFT has none; `auto` loads it. `pretraining` says that fine-tuning puts another head in the place of its own.
    """

    name: str
    what: str
    suffixes: tuple[str, ...]
    peft: str | None
    auto: type
    supported: bool = False
    pretraining: bool = False


CLASSIFIER = Task(
    "text-classification",
    "a sequence classifier",
    ("ForSequenceClassification",),
    "SEQ_CLS",
    AutoModelForSequenceClassification,
    supported=True,
)
LANGUAGE_MODEL = Task(
    "causal",
    "a language model",
    ("ForCausalLM", "LMHeadModel"),
    "CAUSAL_LM",
    AutoModelForCausalLM,
    supported=True,
    pretraining=True,
)
BODY = Task("embedding", "a model without a task head", ("Model",), "FEATURE_EXTRACTION", AutoModel, pretraining=True)

TASKS = (
    CLASSIFIER,
    LANGUAGE_MODEL,
    Task(
        "token-classification",
        "a token classifier",
        ("ForTokenClassification",),
        "TOKEN_CLS",
        AutoModelForTokenClassification,
    ),
    Task(
        "question-answering",
        "a model that answers questions",
        ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        "QUESTION_ANS",
        AutoModelForQuestionAnswering,
    ),
    Task(
        "multiple-choice",
        "a model that chooses among several texts",
        ("ForMultipleChoice", "DoubleHeadsModel"),
        None,
        AutoModelForMultipleChoice,
    ),
    Task("masked", "a masked language model", ("ForMaskedLM",), None, AutoModelForMaskedLM, pretraining=True),
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

    A language model is one of a family that attends to the past alone: an encoder with such a head is none.
    """
    inner = unwrap(model)
    task = task_named(kind.__name__ for kind in type(inner).__mro__)
    return None if task is LANGUAGE_MODEL and not family_of(inner).causal else task


def is_language_model(model: nn.Module) -> bool:
    """Whether the model predicts the next token at every position."""
    return task_of(model) is LANGUAGE_MODEL


def is_regression(model: nn.Module) -> bool:
    """Whether the model gives one number a row."""
    return not is_language_model(model) and unwrap(model).config.num_labels == 1
