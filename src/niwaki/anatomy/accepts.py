"""What batches a model takes, in numbers: its tokens, the length of a row, the labels that fit its outputs."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from niwaki.anatomy.families import family_of
from niwaki.anatomy.positions import longest_input
from niwaki.anatomy.sites import unwrap
from niwaki.anatomy.task import CLASSIFIER, is_language_model, labels_of, task_of
from niwaki.data.checks import Accepts


def accepts_of(model: nn.Module) -> Accepts:
    """What `niwaki.data.checks.checked_batches` holds batches against.

    Raises:
        RequestError: a model of no task that Niwaki takes.
    """
    inner, labels = unwrap(model), labels_of(model)
    vocabulary = int(cast(Any, inner.get_input_embeddings()).weight.shape[0])
    classes = int(inner.config.num_labels or 0)
    if labels == "word":
        labels, classes = "token", vocabulary
    finds_end = task_of(inner) is CLASSIFIER and family_of(inner).causal
    padding = inner.config.pad_token_id if finds_end else None
    return Accepts(vocabulary, longest_input(inner), labels, classes, padding, shifts=is_language_model(inner))
