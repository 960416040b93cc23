"""What a model gives for a token or a row: language models give a next token, classifiers a class or a number."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.anatomy.families import family_of
from niwaki.anatomy.sites import unwrap


def is_language_model(model: nn.Module) -> bool:
    """Whether the model predicts the next token at every position."""
    inner = unwrap(model)
    return inner.can_generate() and family_of(inner).causal


def is_regression(model: nn.Module) -> bool:
    """Whether the model gives one number a row."""
    return not is_language_model(model) and unwrap(model).config.num_labels == 1


def real_logits(logits: Tensor, keep: Tensor) -> Tensor:
    """One row of logits a prediction: `[rows, classes]` as it is, `[rows, length, vocabulary]` at the real tokens."""
    return logits[keep.bool()] if logits.dim() == 3 else logits


def with_labels(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch of a language model with the labels it lacks: its inputs (the model shifts them), -100 for padding.

    A batch that has labels, and that of any other model, is given back as it is.
    """
    if "labels" in batch or not is_language_model(model):
        return batch
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    return {**batch, "labels": ids if mask is None else ids.masked_fill(mask == 0, -100)}
