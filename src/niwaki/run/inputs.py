"""From a request to what the work is done on: the model, its tokenizer, tokenised rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel

from niwaki.anatomy import longest_input, unwrap
from niwaki.checkpoint import load, load_tokenizer, new_parameters
from niwaki.config import Request
from niwaki.data import Batches, Table, encode, is_regression, read_table
from niwaki.errors import RequestError
from niwaki.lora import check_model


@dataclass(frozen=True)
class Inputs:
    """A model with its tokenizer, and how rows are made into batches for it."""

    model: PreTrainedModel | PeftModel
    tokenizer: Any
    batch_size: int
    max_length: int

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Tokenised rows of a table, with the labels as the model numbers them."""
        return to_rows(table, self.model, self.tokenizer, self.max_length)

    def batches(self, rows: list[dict[str, Any]]) -> Batches:
        """Padded batches of rows, sorted by length."""
        return Batches(rows, self.tokenizer, self.batch_size)


def read_inputs(request: Request, labels: list[str] | None = None) -> Inputs:
    """Load the model of a request; `labels` are the names of the classes that a new task head is to have.

    Raises:
        RequestError: a model that does not load, or cannot be pruned.
    """
    model = load(request.model, request.base_model, request.device, labels)
    check_model(model)
    fresh = new_parameters(model)
    if fresh and labels is None:
        raise RequestError(
            f"model must have a trained task head, got {request.model!r} without {fresh[0]}; fine-tune it first"
        )
    tokenizer = load_tokenizer(request.model, request.base_model)
    return Inputs(model, tokenizer, request.batch_size, min(request.max_length, longest_input(model)))


def check_out(request: Request, *sources: str | None) -> None:
    """Refuse to write over what is read.

    Raises:
        RequestError: a local source that is, or lies in, the folder to write.
    """
    out = Path(request.out).resolve()
    for source in sources:
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(out):
            raise RequestError(f"out must not hold what is read ({source!r}), got {request.out!r}")


def read_data(request: Request, source: str, split: str, quiet: bool) -> Table:
    """Read the data of a request and say what was recognised.

    Raises:
        RequestError: see `niwaki.data.read_table`.
    """
    table = read_table(source, request.text_columns, request.label_column, split)
    if not quiet:
        Console(stderr=True, soft_wrap=True).print(f"{split}: {table}", markup=False, highlight=False)
    return table


def to_rows(table: Table, model: Any, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenised rows of a table, with the labels as the model numbers them.

    Raises:
        RequestError: numbers to predict for a model of classes, or a label that the model does not have.
    """
    config = unwrap(model).config
    regression = config.num_labels == 1
    if is_regression(table) and not regression:
        raise RequestError(f"labels must be classes for a model with {config.num_labels} labels, got numbers")
    return encode(table, tokenizer, max_length, dict(cast(Any, config.label2id)), regression)
