"""What a language model gives the text: `exp` of the mean negative log-likelihood of a next token, in nats and bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import evaluation_mode, with_labels
from niwaki.data import Batches
from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError
from niwaki.evaluate.judged import Judged, NextTokens, shown_token
from niwaki.evaluate.sums import figures_and_intervals
from niwaki.evaluate.token_losses import token_losses
from niwaki.numerics.half import half_in_float32
from niwaki.processes import Parts, shared_out
from niwaki.progress import bar

LANGUAGE_METRICS = ("perplexity", "nats_per_token", "bits_per_token")
LARGEST = 700.0
"""Nats whose `exp` is still a number."""


def perplexity(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`LANGUAGE_METRICS` -> value, over every token of the batches that has a label (all but the first of a row).

    Raises:
        RequestError: no batch with a token to predict. WorkError: logits that are not finite.
    """
    return next_tokens(model, batches, progress).quality


@torch.inference_mode()
def next_tokens(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """The same, with what each token cost; a row of its intervals is a window of text. Raises as `perplexity`."""
    device = next(model.parameters()).device

    def see(batch: dict[str, Any]) -> Parts:
        inputs = {name: value.to(device) for name, value in with_labels(model, batch).items()}
        labels = inputs.pop("labels")[:, 1:]
        losses = token_losses(model, inputs, F.pad(labels, (0, 1), value=UNLABELLED))
        return {"nats": losses[:, :-1].cpu(), "tokens": labels.cpu()}

    with evaluation_mode(model), half_in_float32(model):
        seen = shared_out(bar(batches, phase="evaluate", unit="batches", progress=progress), see)
    nats: list[Tensor] = [row for part in seen for row in part["nats"]]
    tokens: list[Tensor] = [row for part in seen for row in part["tokens"]]
    sums = np.array(
        [[float(n.double().sum()), int((t != UNLABELLED).sum())] for n, t in zip(nats, tokens, strict=True)]
    )
    if not len(sums) or not sums[:, 1].any():
        raise RequestError("eval_data must hold rows of two tokens at least, got none")

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        mean = sums[:, 0] / np.maximum(sums[:, 1], 1)
        values = (np.exp(np.minimum(mean, LARGEST)), mean, mean / math.log(2))
        return dict(zip(LANGUAGE_METRICS, values, strict=True))

    shown = shown_token(batches.tokenizer) if isinstance(batches, Batches) else str
    return Judged(*figures_and_intervals(sums, figures), next_tokens=NextTokens(nats, tokens, shown))
