"""From a request to what the work is done on: the model, its tokenizer, tokenised rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from niwaki.adapters import check_model
from niwaki.anatomy import (
    BODY,
    LANGUAGE_MODEL,
    is_language_model,
    labels_of,
    longest_input,
    pool_by_,
    pooling_of,
    supported_task,
    task_of,
    unwrap,
)
from niwaki.checkpoint import (
    AsRead,
    NewLabels,
    SentenceHead,
    agree_on_padding_,
    load,
    load_tokenizer,
    new_parameters,
    plain_pooling,
    task_of_checkpoint,
)
from niwaki.config import Request
from niwaki.data import Batches, Table, read_table
from niwaki.data.labels import say_nothing
from niwaki.data.running_text import Protocol, text_of
from niwaki.data.sentences import texts_as_read
from niwaki.errors import RequestError
from niwaki.progress import say
from niwaki.run.rows import Cut, cut_table, outputs_of


@dataclass(frozen=True)
class Inputs:
    """A model with its tokenizer, and how rows are made into batches for it."""

    model: PreTrainedModel | PeftModel
    tokenizer: Any
    batch_size: int
    cut: Cut
    quiet: bool
    protocols: dict[str, Protocol] = field(default_factory=dict)
    """How the text of each split was cut for a language model."""
    weights: AsRead = field(default_factory=AsRead)

    def rows(self, table: Table, split: str) -> list[dict[str, Any]]:
        """Tokenised rows of a table, with the labels as the model numbers them; says what became of them."""
        found = cut_table(table, self.model, self.tokenizer, self.cut, split)
        if found.protocol is not None:
            self.protocols[split] = found.protocol
        if said := str(found):
            say(f"{split}: {said}", self.quiet)
        return found.rows

    def texts(self, table: Table) -> list[str] | list[list[str]]:
        """The texts of a table as they are tokenised: for a language model the whole as one, of words a row's words."""
        if is_language_model(self.model):
            return [text_of(table)]
        if isinstance(head := pooling_of(self.model), SentenceHead):
            return texts_as_read(table, head.as_read)
        if table.tagged:
            return [list(row) for row in table.texts if row]
        return [text for row in table.texts for text in row]

    def described(self, table: Table, split: str) -> dict[str, Any]:
        """The data as they stand in `result.json`, with the protocol of a language model."""
        protocol = self.protocols.get(split)
        return table.describe() | (protocol.to_dict() if protocol else {})

    def batches(self, rows: list[dict[str, Any]], *, sort_by_length: bool = True) -> Batches:
        """Padded batches of rows, sorted by length unless they are to stay in order."""
        return Batches(rows, self.tokenizer, self.batch_size, sort_by_length=sort_by_length)


def read_inputs(request: Request, labels: NewLabels | None = None, quiet: bool = False) -> Inputs:
    """Load the model of a request; `labels` say what a new task head is to give.

    Raises:
        RequestError: a model that does not load or cannot be pruned, a tokenizer that cannot pad.
    """
    if labels is None and without_head(request) and task_of_checkpoint(request.model, request.base_model).pretraining:
        labels = NewLabels((), BODY)
    model = load(request.model, request.base_model, request.device, labels, request.dtype)
    check_out(request.out, unwrap(model).name_or_path)  # the base of an adapter too
    fresh = new_parameters(model)
    if fresh and labels is None:
        raise RequestError(
            f"model must have a trained task head, got {request.model!r} without {fresh[0]}; fine-tune it first"
        )
    if request.dtype == "auto" and unwrap(model).config.dtype == torch.float16:
        say("model: its files hold float16, which is held and written as float32", quiet)
    if request.label_names is not None:
        name_outputs_(model, request.label_names)
    if request.pooling is not None:
        _pool_by_(model, request.pooling)
    if fresh:
        say("model: a new task head, to be trained", quiet)
    tokenizer = tokenizer_for(model, request.model, request.base_model, new_head=bool(fresh))
    if changed := agree_on_padding_(model, tokenizer, new_head=bool(fresh)):
        say(f"model: {changed}", quiet)
    check_model(model)
    check_asked_task(request, model)
    _check_cut(request, model)
    language = is_language_model(model)
    if tokenizer.pad_token_id is None:
        raise RequestError(f"model must have a tokenizer with a padding token, got {request.model!r} without pad_token")
    length = request.max_length if language else min(request.max_length, longest_input(model))
    named = request.label_names is not None
    cut = Cut(length, request.stride, request.bos, named, request.task, request.seed)
    return Inputs(model, tokenizer, request.batch_size, cut, quiet, weights=AsRead.of(str(unwrap(model).name_or_path)))


def tokenizer_for(model: Any, source: str | Path, base_model: str | None = None, *, new_head: bool = False) -> Any:
    """The tokenizer at `source`, set up to cut text for `model`.

    Raises:
        RequestError: see `niwaki.checkpoint.load_tokenizer`.
    """
    of_words, padding = supported_task(model).labels == "token", is_language_model(model)
    return load_tokenizer(source, base_model, of_words=of_words, new_head=new_head, padding=padding)


def without_head(request: Request) -> bool:
    """Whether a model without a head is asked for, whatever pretraining has left on it."""
    return request.pooling is not None or request.task == BODY.name


def _pool_by_(model: Any, pooling: str) -> None:
    """Have a model without a task head make one vector a text; one that pools so and does nothing else does already.

    Raises:
        RequestError: a model with a head, or a sentence encoder that has another way.
    """
    own, asked = pooling_of(model), None
    if task_of(model) is BODY:
        asked = plain_pooling(pooling, unwrap(model).config.hidden_size, longest_input(model))
    # What was pruned with a pooling is held against what it came from, of which it is to be asked again.
    same = asked is not None and isinstance(own, SentenceHead) and own.files == asked.files
    if asked is None or (own is not None and not same):
        what = "a sentence encoder that has its own" if own else supported_task(model).what
        raise RequestError(f"pooling must be asked of {BODY.what}, got {pooling!r} for {what}")
    if not same:
        pool_by_(model, asked)


def _check_cut(request: Request, model: Any) -> None:
    """Refuse to be told how text is cut that is not cut so.

    Raises:
        RequestError: naming the option, and what the model is.
    """
    task, language = supported_task(model), is_language_model(model)
    if request.bos and not language:
        raise RequestError(f"bos must be asked of a language model, whose text it cuts, got {task.what}")
    if request.stride is not None and not language and task.labels != "span":
        rule = "stride must be asked of a language model or a model that answers questions, whose text it cuts"
        raise RequestError(f"{rule}, got {task.what}")


def check_asked_task(request: Request, model: Any) -> None:
    """Refuse a task that the model is not for.

    Raises:
        RequestError: naming the model's.
    """
    own = task_of(model)
    if request.task is not None and own is not None and own.name != request.task:
        rule = f"task must be {own.name} for {own.what} ({type(unwrap(model)).__name__})"
        if own is LANGUAGE_MODEL:
            rule += ", unless its first stage trains a new head on labels, as finetune does"
        raise RequestError(f"{rule}, got {request.task!r}")


def check_out(out: str, *sources: str | None) -> None:
    """Refuse to write over what is read.

    Raises:
        RequestError: a local source that is, or lies in, the folder to write.
    """
    target = Path(out).resolve()
    for source in sources:
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(target):
            raise RequestError(f"out must not hold what is read ({source!r}), got {out!r}")


def read_data(request: Request, source: str, split: str, quiet: bool) -> Table:
    """Read the data of a request, for `train` or for `validation`, and say what was recognised.

    Raises:
        RequestError: a split or a configuration asked of files; see `niwaki.data.read_table`.
    """
    name = "train_split" if split == "train" else "eval_split"
    asked = getattr(request, name)
    if asked is not None and Path(source).is_file():
        raise RequestError(f"{name} must be asked of a Hub data set, got {asked!r} for the file {source!r}")
    sources = [getattr(request, key, None) for key in ("train_data", "eval_data")]
    if request.data_config is not None and all(Path(source).is_file() for source in sources if source):
        raise RequestError(f"data_config must be asked of a Hub data set, got {request.data_config!r} for files")
    table = read_table(
        source, request.text_columns, request.label_column, split, hub_split=asked, config=request.data_config
    )
    if table.split not in (None, asked or split):
        say(f"{split}: {source} has no split {split}, {table.split} is taken", quiet)
    say(f"{split}: {table}", quiet)
    return table


def check_labelled(table: Table, parameter: str) -> None:
    """Refuse a table without labels where they are needed.

    Raises:
        RequestError: naming the columns that were seen.
    """
    if table.labels is None:
        rule = f"{parameter} must have labels, got none in {table.path!r} among {table.seen()}"
        raise RequestError(f"{rule}; --label-column names them")


def name_outputs_(model: Any, names: tuple[str, ...]) -> None:
    """Name the outputs of a classifier, in place and in their order: what it is saved with, and labels are read by.

    Raises:
        RequestError: not as many names as outputs, or no outputs that have names; the model's own names turned round.
    """
    config = unwrap(model).config
    if labels_of(model) not in ("class", "several", "token"):
        raise RequestError(f"label_names must be asked of a model of classes, got {' '.join(names)}")
    if config.num_labels != len(names):
        raise RequestError(f"label_names must be the model's {config.num_labels}, got {len(names)}: {' '.join(names)}")
    outputs = outputs_of(model)
    own = sorted(outputs, key=lambda name: outputs[name])
    bare = say_nothing(own) or all(map(str.isdecimal, own))
    if set(own) == set(names) and own != list(names) and not bare:
        rule = f"label_names must be in the order in which the model names them itself, {' '.join(own)}"
        raise RequestError(f"{rule}, or other names, got {' '.join(names)}")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
