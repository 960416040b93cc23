"""From a request to what the work is done on: the model, its tokenizer, tokenised rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel

from niwaki.adapters import check_model
from niwaki.anatomy import CLASSIFIER, LANGUAGE_MODEL, is_language_model, longest_input, task_of, unwrap
from niwaki.checkpoint import agree_on_padding_, load, load_tokenizer, new_parameters
from niwaki.config import Request
from niwaki.data import Batches, Table, encode, label_map, predicts_numbers, read_table
from niwaki.data.running_text import Protocol, pack, text_of
from niwaki.errors import RequestError
from niwaki.progress import say


@dataclass(frozen=True)
class Inputs:
    """A model with its tokenizer, and how rows are made into batches for it."""

    model: PreTrainedModel | PeftModel
    tokenizer: Any
    batch_size: int
    max_length: int
    quiet: bool
    stride: int | None = None
    bos: bool = False
    named: bool = False
    """Whether the user gave the names of the model's outputs."""
    task: str | None = None
    """The task that the user asked for."""
    protocols: dict[str, Protocol] = field(default_factory=dict)
    """How the text of each split was cut for a language model."""

    def rows(self, table: Table, split: str) -> list[dict[str, Any]]:
        """Tokenised rows of a table, with the labels as the model numbers them; says which label became which.

        For a language model the windows of its running text; says how it was cut.
        """
        if is_language_model(self.model):
            longest = longest_input(self.model)
            if self.max_length > longest:
                raise RequestError(f"max_length must be at most {longest}, the model's context, got {self.max_length}")
            name = "train_data" if split == "train" else "eval_data"
            self._check_running_text(table, name)
            rows, protocol = pack(text_of(table), self.tokenizer, self.max_length, self.stride, bos=self.bos, name=name)
            check_ids(rows, self.model, self.tokenizer)
            self.protocols[split] = protocol
            say(f"{split}: {protocol}", self.quiet)
            return rows
        if split != "train":
            check_labelled(table, "eval_data")
        rows = to_rows(table, self.model, self.tokenizer, self.max_length, self.named)
        if table.labels is not None and unwrap(self.model).config.num_labels != 1:
            say(f"{split}: labels {label_map(table, rows, outputs_of(self.model))}", self.quiet)
        return rows

    def _check_running_text(self, table: Table, name: str) -> None:
        """Refuse labels that a language model would not learn from, unless that is asked for."""
        if table.labels is not None and self.task != LANGUAGE_MODEL.name:
            rule = f"{name} of a language model must be running text (--task {LANGUAGE_MODEL.name}: leave labels out;"
            rule += f" --task {CLASSIFIER.name} with finetune: train a classifier on them)"
            raise RequestError(f"{rule}, got labels in {table.label_column!r} of {table.path!r}")

    def texts(self, table: Table) -> list[str]:
        """The texts of a table as they are tokenised: for a language model the whole as one."""
        return [text_of(table)] if is_language_model(self.model) else [text for row in table.texts for text in row]

    def described(self, table: Table, split: str) -> dict[str, Any]:
        """The data as they stand in `result.json`, with the protocol of a language model."""
        protocol = self.protocols.get(split)
        return table.describe() | (protocol.to_dict() if protocol else {})

    def batches(self, rows: list[dict[str, Any]]) -> Batches:
        """Padded batches of rows, sorted by length."""
        return Batches(rows, self.tokenizer, self.batch_size)


def read_inputs(request: Request, labels: list[str] | None = None, quiet: bool = False) -> Inputs:
    """Load the model of a request; `labels` are the names of the classes that a new task head is to have.

    Raises:
        RequestError: a model that does not load or cannot be pruned, a tokenizer that cannot pad.
    """
    model = load(request.model, request.base_model, request.device, labels, request.dtype)
    check_out(request.out, unwrap(model).name_or_path)  # the base of an adapter too
    fresh = new_parameters(model)
    if fresh and labels is None:
        raise RequestError(
            f"model must have a trained task head, got {request.model!r} without {fresh[0]}; fine-tune it first"
        )
    if request.label_names is not None:
        name_outputs_(model, request.label_names)
    if fresh:
        say("model: a new task head, to be trained", quiet)
    tokenizer = load_tokenizer(request.model, request.base_model)
    if changed := agree_on_padding_(model, tokenizer, new_head=bool(fresh)):
        say(f"model: {changed}", quiet)
    check_model(model)
    check_asked_task(request, model)
    language = is_language_model(model)
    if language and tokenizer.pad_token_id is None:  # windows are padded by their mask: any token does
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise RequestError(f"model must have a tokenizer with a padding token, got {request.model!r} without pad_token")
    length = request.max_length if language else min(request.max_length, longest_input(model))
    return Inputs(
        model=model,
        tokenizer=tokenizer,
        batch_size=request.batch_size,
        max_length=length,
        quiet=quiet,
        stride=request.stride,
        bos=request.bos,
        named=request.label_names is not None,
        task=request.task,
    )


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
        RequestError: not as many names as outputs, or no outputs that have names.
    """
    config = unwrap(model).config
    if is_language_model(model) or config.num_labels == 1:
        raise RequestError(f"label_names must be asked of a model of classes, got {' '.join(names)}")
    if config.num_labels != len(names):
        raise RequestError(f"label_names must be the model's {config.num_labels}, got {len(names)}: {' '.join(names)}")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def outputs_of(model: Any) -> dict[str, int]:
    """The outputs of a classifier by their names; `label2id` is often left as it was where `id2label` was set."""
    return {str(name): int(index) for index, name in cast(Any, unwrap(model).config.id2label).items()}


def to_rows(table: Table, model: Any, tokenizer: Any, max_length: int, named: bool = False) -> list[dict[str, Any]]:
    """Tokenised rows of a table, with the labels as the model numbers them; `named`: the user gave their names.

    Raises:
        RequestError: numbers to predict for a model of classes, a label or a token that the model does not have.
    """
    config = unwrap(model).config
    regression = config.num_labels == 1
    if predicts_numbers(table) and not regression:
        raise RequestError(f"labels must be classes for a model with {config.num_labels} labels, got numbers")
    rows = encode(table, tokenizer, max_length, outputs_of(model), regression, named=named)
    check_ids(rows, model, tokenizer)
    return rows


def check_ids(rows: list[dict[str, Any]], model: Any, tokenizer: Any) -> None:
    """Refuse the tokenizer of another model.

    Raises:
        RequestError: a token that the model does not have.
    """
    size = cast(Any, unwrap(model).get_input_embeddings()).weight.shape[0]
    highest = max(tokenizer.pad_token_id or 0, max(max(row["input_ids"], default=0) for row in rows))
    if highest >= size:
        raise RequestError(f"tokenizer must be the model's own, with ids below {size}, got id {highest}")
