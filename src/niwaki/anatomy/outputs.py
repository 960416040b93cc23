"""What goes into a model and comes out of it: a prediction a token from language models, one a row from classifiers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.anatomy.task import is_language_model


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
