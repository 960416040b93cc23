"""Metrics of models that say one thing a token: entities found, or tags that are right.

Only tokens with a label count: of a word that is cut into pieces that is the first one (`niwaki.data.tagged`). Entities
are what seqeval makes of the tags of a row, BIO or IOBES: an entity is right where its kind, its start and its end are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from niwaki.anatomy import unwrap
from niwaki.data.batches import UNLABELLED
from niwaki.data.tagged import of_entities
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.passes import outputs_over

ENTITY_METRICS = ("f1", "precision", "recall", "token_accuracy")
TAG_METRICS = ("token_accuracy",)


@torch.inference_mode()
def tags(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`ENTITY_METRICS` where the model's tags are of entities (`B-PER`, `O`), else `TAG_METRICS`.

    Raises:
        RequestError: a batch without labels, or no token with one. WorkError: logits that are not finite.
    """
    names = cast("dict[int, str]", unwrap(model).config.id2label)
    truth: list[list[str]] = []
    found: list[list[str]] = []
    with outputs_over(model, batches, progress, lacking="a table without tags") as pairs:
        for batch, outputs in pairs:
            logits = outputs.logits.float().cpu()
            for row, labels in zip(logits, batch["labels"].cpu(), strict=True):
                counted = labels != UNLABELLED
                check_finite(model, row[counted])
                truth.append([names[int(label)] for label in labels[counted]])
                found.append([names[int(label)] for label in row[counted].argmax(-1)])
    count = sum(map(len, truth))
    if not count:
        raise RequestError("eval_data must hold tagged tokens, got none")
    right = sum(a == b for wanted, given in zip(truth, found, strict=True) for a, b in zip(wanted, given, strict=True))
    accuracy = {"token_accuracy": right / count}
    if not of_entities(names.values()):
        return accuracy
    from seqeval.metrics import f1_score, precision_score, recall_score  # here: it takes a second to import

    scores: dict[str, Any] = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: float(score(truth, found, zero_division=0)) for name, score in scores.items()} | accuracy
