"""What batches a model takes, in numbers: its tokens, the length of a row, the labels that fit its outputs."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from niwaki.anatomy.families import family_of
from niwaki.anatomy.positions import longest_input
from niwaki.anatomy.sites import unwrap
from niwaki.anatomy.task import CLASSIFIER, LANGUAGE_MODEL, task_of
from niwaki.data.checks import Accepts


def accepts_of(model: nn.Module) -> Accepts:
    """What `niwaki.data.checks.checked_batches` holds batches against. Labels of other tasks are not looked at."""
    inner = unwrap(model)
    vocabulary = int(cast(Any, inner.get_input_embeddings()).weight.shape[0])
    labels, classes = "any", int(inner.config.num_labels or 0)
    task = task_of(inner)
    if task is LANGUAGE_MODEL:
        labels, classes = "token", vocabulary
    elif task is CLASSIFIER:
        several = inner.config.problem_type == "multi_label_classification"
        labels = "several" if several else "number" if classes == 1 else "class"
    finds_end = task is CLASSIFIER and family_of(inner).causal
    padding = inner.config.pad_token_id if finds_end else None
    return Accepts(vocabulary, longest_input(inner), labels, classes, padding)
