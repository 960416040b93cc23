"""A table -> tokenised rows as the task of a model wants them: one function a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from niwaki.anatomy import (
    BODY,
    CLASSIFIER,
    LANGUAGE_MODEL,
    labels_of,
    longest_input,
    pooling_of,
    supported_task,
    unwrap,
)
from niwaki.checkpoint import SentenceHead
from niwaki.data import Table, encode, label_map, predicts_numbers
from niwaki.data.answers import encode_answers
from niwaki.data.batches import length_of
from niwaki.data.choices import encode_choices
from niwaki.data.masked import hide_words
from niwaki.data.rows import encode_texts
from niwaki.data.running_text import Protocol, pack, text_of
from niwaki.data.sentences import encode_sentences, is_search
from niwaki.data.several import several_ids, several_map
from niwaki.data.tagged import encode_tagged, looks_tagged
from niwaki.errors import RequestError


@dataclass(frozen=True)
class Cut:
    """How texts are cut: tokens of a row, and for running text from one row to the next, and whether each gets a BOS.

    `named` says that the user gave the names of the model's outputs, `task` which task was asked for; `seed` draws the
    words of the training data that are hidden.
    """

    max_length: int
    stride: int | None = None
    bos: bool = False
    named: bool = False
    task: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """Tokenised rows, what a person is to know of them, and how running text was cut.

    Of texts of more than `longest` tokens the rest is gone; None where nothing is lost.
    """

    rows: list[dict[str, Any]]
    said: str = ""
    protocol: Protocol | None = None
    longest: int | None = None

    def __str__(self) -> str:
        full = 0 if self.longest is None else sum(length_of(row) >= self.longest for row in self.rows)
        cut = f"{full} rows have {self.longest} tokens, at which longer ones are cut" if full else ""
        return "; ".join(part for part in (self.said, cut) if part)


def cut_table(table: Table, model: Any, tokenizer: Any, how: Cut, split: str) -> Rows:
    """The rows of `table`, read for `split`, for the task of `model`; a table without labels gives rows without.

    Raises:
        RequestError: a table of another form than the task's, labels or tokens that the model does not have.
    """
    task = supported_task(model)
    name = "train_data" if split == "train" else "eval_data"
    if table.tagged and task.labels != "token":
        raise RequestError(f"{name} must be texts for {task.what}, got words with tags in {table.path!r}")
    if table.ids is not None and task.labels != "span":
        raise RequestError(f"{name} must be texts for {task.what}, got questions with answers in {table.path!r}")
    if table.choices and task.labels != "choice":
        raise RequestError(f"{name} must be texts for {task.what}, got prompts with choices in {table.path!r}")
    found = _CUTS[task.name](table, model, tokenizer, how, name)
    check_ids(found.rows, model, tokenizer)
    return found


def to_rows(table: Table, model: Any, tokenizer: Any, max_length: int, named: bool = False) -> list[dict[str, Any]]:
    """The rows of `table` for `model`, see `cut_table`."""
    return cut_table(table, model, tokenizer, Cut(max_length, named=named), "train").rows


def outputs_of(model: Any) -> dict[str, int]:
    """The outputs of a classifier by their names; `label2id` is often left as it was where `id2label` was set."""
    return {str(name): int(index) for index, name in cast(Any, unwrap(model).config.id2label).items()}


def check_ids(rows: list[dict[str, Any]], model: Any, tokenizer: Any) -> None:
    """Refuse the tokenizer of another model.

    Raises:
        RequestError: a token that the model does not have.
    """
    size = cast(Any, unwrap(model).get_input_embeddings()).weight.shape[0]
    texts = (ids if isinstance(ids[0], list) else [ids] for ids in (row["input_ids"] for row in rows))
    highest = max(tokenizer.pad_token_id or 0, max(max(text) for row in texts for text in row))
    if highest >= size:
        raise RequestError(f"tokenizer must be the model's own, with ids below {size}, got id {highest}")


def _classified(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """A row a text or pair: its class, its number, or all labels that hold."""
    del name
    kind, outputs = labels_of(model), outputs_of(model)
    if table.several and kind != "several" and not _are_names(table, outputs):
        rule = "labels must be one name or number a row for a model that gives one (it gives several if problem_type in"
        rule += " its config.json is multi_label_classification)"
        raise RequestError(f"{rule}, got lists in {table.label_column!r} of {table.path!r}")
    if kind == "several":
        rows = encode_texts(table, tokenizer, how.max_length)
        if table.labels is None:
            return Rows(rows, longest=how.max_length)
        for row, labels in zip(rows, several_ids(table, outputs), strict=True):
            row["labels"] = labels
        return Rows(rows, f"labels {several_map(table, outputs)}", longest=how.max_length)
    regression = kind == "number"
    if predicts_numbers(table) and not regression:
        count = unwrap(model).config.num_labels
        raise RequestError(f"labels must be classes for a model with {count} labels, got numbers")
    rows = encode(table, tokenizer, how.max_length, outputs, regression, named=how.named)
    said = "" if regression or table.labels is None else f"labels {label_map(table, rows, outputs)}"
    return Rows(rows, said, longest=how.max_length)


def _are_names(table: Table, outputs: dict[str, int]) -> bool:
    """Whether every label, as it stands, is the name of an output: a class can have a bar in its name."""
    return all(isinstance(label, str) and label.strip() in outputs for label in table.labels or [])


def _tagged(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """A row a sentence, its words tagged; texts without labels as they stand."""
    if not table.tagged:
        if table.labels is None and not looks_tagged(table):
            return Rows(encode_texts(table, tokenizer, how.max_length), longest=how.max_length)
        rule = f"{name} of {supported_task(model).what} must be words with tags (a .conll or .conllu file, `tokens`"
        rule += " with `tags`), or texts without labels"
        raise RequestError(f"{rule}, got {table.seen()} in {table.path!r}")
    found = encode_tagged(table, tokenizer, how.max_length, outputs_of(model))
    return Rows(found.rows, str(found))


def _answered(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """A row a question with a part of its context, also where the table has no answers."""
    if table.ids is None and (table.labels is not None or len(table.text_columns) != 2 or is_search(table)):
        rule = f"{name} of {supported_task(model).what} must be questions with contexts and answers (SQuAD's form), or"
        raise RequestError(f"{rule} columns question and context without, got {table.seen()} in {table.path!r}")
    rows = encode_answers(table, tokenizer, how.max_length, how.stride)
    return Rows(rows, f"{table.rows} questions in {len(rows)} rows" if len(rows) > table.rows else "")


def _windows(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """Windows of running text, whose labels are their next tokens."""
    longest = longest_input(model)
    if how.max_length > longest:
        raise RequestError(f"max_length must be at most {longest}, the model's context, got {how.max_length}")
    if table.labels is not None and how.task != LANGUAGE_MODEL.name:
        rule = f"{name} of a language model must be running text (--task {LANGUAGE_MODEL.name}: leave labels out;"
        rule += f" --task {CLASSIFIER.name} with finetune: train a classifier on them)"
        raise RequestError(f"{rule}, got labels in {table.label_column!r} of {table.path!r}")
    rows, protocol = pack(text_of(table), tokenizer, how.max_length, how.stride, bos=how.bos, name=name)
    return Rows(rows, str(protocol), protocol)


def _hidden(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """A row a text, some of its words hidden."""
    if table.labels is not None and how.task != supported_task(model).name:
        rule = f"{name} of a model of masked words must be texts (--task masked: leave labels out;"
        rule += f" --task {CLASSIFIER.name} with finetune: train a classifier on them)"
        raise RequestError(f"{rule}, got labels in {table.label_column!r} of {table.path!r}")
    rows = encode_texts(table, tokenizer, how.max_length)
    # Models are measured on the same words whatever their seed: else runs of several seeds would not compare.
    return Rows(hide_words(rows, tokenizer, how.seed if name == "train_data" else 0), longest=how.max_length)


def _chosen(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """A row a prompt with each of its choices."""
    if not table.choices:
        rule = f"{name} of {supported_task(model).what} must be prompts with choices (question, choices, answer)"
        raise RequestError(f"{rule}, got {table.seen()} in {table.path!r}")
    rows = encode_choices(table, tokenizer, how.max_length)
    return Rows(rows, longest=how.max_length)


def _embedded(table: Table, model: Any, tokenizer: Any, how: Cut, name: str) -> Rows:
    """A row a text; what pairs are measured by goes with them where the model gives a vector a text."""
    head = pooling_of(model)
    if not isinstance(head, SentenceHead):
        if table.labels is not None and how.task != BODY.name:
            rule = f"{name} of {BODY.what} must be texts (--task {BODY.name}: leave labels out; --pooling mean: measure"
            rule += f" pairs by the cosine; finetune first: train a head on them), got {table.label_column!r}"
            raise RequestError(f"{rule} in {table.path!r}")
        rows = encode_sentences(table, tokenizer, how.max_length, lambda text, _: text, measured=False)
        return Rows(rows, longest=how.max_length)
    longest = min(how.max_length, head.longest or how.max_length, tokenizer.model_max_length)
    rows = encode_sentences(table, tokenizer, longest, head.as_read, measured=name == "eval_data")
    return Rows(rows, longest=longest)


_CUTS: dict[str, Callable[[Table, Any, Any, Cut, str], Rows]] = {
    "text-classification": _classified,
    "token-classification": _tagged,
    "causal": _windows,
    "masked": _hidden,
    "question-answering": _answered,
    "multiple-choice": _chosen,
    "embedding": _embedded,
}
"""Task -> how its rows are cut."""
