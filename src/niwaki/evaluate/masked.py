"""How well a model fills in masked words: of tokens that stand behind a mask, and have the hidden word as label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from niwaki.anatomy import evaluation_mode
from niwaki.data import without_labels
from niwaki.data.checks import UNLABELLED
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.numerics.half import half_in_float32
from niwaki.progress import bar

MASKED_METRICS = ("pseudo_perplexity", "masked_accuracy")


@torch.inference_mode()
def masked_words(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`MASKED_METRICS`: `exp` of the mean negative log-likelihood of the hidden words, and how many are the likeliest.

    Raises:
        RequestError: no hidden word. WorkError: logits that are not finite.
    """
    device, nats, right, count = next(model.parameters()).device, 0.0, 0, 0
    with evaluation_mode(model), half_in_float32(model):
        for batch in bar(batches, phase="evaluate", unit="batches", progress=progress):
            if "labels" not in batch:
                raise RequestError("eval_data must have labels, got batches without hidden words")
            inputs = {name: value.to(device) for name, value in without_labels(batch).items()}
            labels = batch["labels"].to(device)
            hidden = labels != UNLABELLED
            logits = model(**inputs).logits[hidden].float()
            check_finite(model, logits)
            nats += float(F.cross_entropy(logits, labels[hidden], reduction="sum"))
            right += int((logits.argmax(-1) == labels[hidden]).sum())
            count += int(hidden.sum())
    if not count:
        raise RequestError("eval_data must hold hidden words, got none")
    return {"pseudo_perplexity": math.exp(min(nats / count, 700.0)), "masked_accuracy": right / count}
