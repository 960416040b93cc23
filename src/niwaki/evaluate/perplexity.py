"""What a language model gives the text: `exp` of the mean negative log-likelihood of a next token, in nats and bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from niwaki.anatomy import evaluation_mode, with_labels
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.numerics.half import half_in_float32
from niwaki.progress import bar

LANGUAGE_METRICS = ("perplexity", "nats_per_token", "bits_per_token")


@torch.inference_mode()
def perplexity(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`LANGUAGE_METRICS` -> value, over every token of the batches that has a label (all but the first of a row).

    Raises:
        RequestError: no batch with a token to predict. WorkError: logits that are not finite.
    """
    device, nats, tokens = next(model.parameters()).device, 0.0, 0
    with evaluation_mode(model), half_in_float32(model):
        for batch in bar(batches, phase="evaluate", unit="batches", progress=progress):
            inputs = {name: value.to(device) for name, value in with_labels(model, batch).items()}
            labels = inputs.pop("labels")[:, 1:]
            logits = model(**inputs).logits[:, :-1].float()
            loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
            check_finite(model, loss)
            nats, tokens = nats + float(loss), tokens + int((labels != -100).sum())
    if not tokens:
        raise RequestError("eval_data must hold rows of two tokens at least, got none")
    mean = nats / tokens
    return {
        "perplexity": math.exp(min(mean, 700.0)),
        "nats_per_token": mean,
        "bits_per_token": mean / math.log(2),
    }
