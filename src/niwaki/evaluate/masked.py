"""How well a model fills in masked words: of tokens that stand behind a mask, and have the hidden word as label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.passes import outputs_over

MASKED_METRICS = ("pseudo_perplexity", "masked_accuracy")


@torch.inference_mode()
def masked_words(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`MASKED_METRICS`: `exp` of the mean negative log-likelihood of the hidden words, and how many are the likeliest.

    Raises:
        RequestError: no hidden word. WorkError: logits that are not finite.
    """
    nats, right, count = 0.0, 0, 0
    with outputs_over(model, batches, progress, lacking="batches without hidden words") as pairs:
        for batch, outputs in pairs:
            labels = batch["labels"].to(outputs.logits.device)
            hidden = labels != UNLABELLED
            logits = outputs.logits[hidden].float()
            check_finite(model, logits)
            nats += float(F.cross_entropy(logits, labels[hidden], reduction="sum"))
            right += int((logits.argmax(-1) == labels[hidden]).sum())
            count += int(hidden.sum())
    if not count:
        raise RequestError("eval_data must hold hidden words, got none")
    return {"pseudo_perplexity": math.exp(min(nats / count, 700.0)), "masked_accuracy": right / count}
