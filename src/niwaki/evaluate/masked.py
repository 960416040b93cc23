"""How well a model fills in masked words: of tokens that stand behind a mask, and have the hidden word as label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.judged import Judged, Keeper
from niwaki.evaluate.passes import seen_over
from niwaki.evaluate.perplexity import LARGEST
from niwaki.evaluate.sums import figures_and_intervals
from niwaki.processes import Parts

MASKED_METRICS = ("pseudo_perplexity", "masked_accuracy")


@torch.inference_mode()
def masked_words(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`MASKED_METRICS`: `exp` of the mean negative log-likelihood of the hidden words, and how many are the likeliest.

    Raises:
        RequestError: no hidden word. WorkError: logits that are not finite.
    """
    keeper = Keeper(model)

    def see(batch: dict[str, Any], outputs: Any) -> Parts:
        labels = batch["labels"].to(outputs.logits.device)
        hidden = labels != UNLABELLED
        logits = outputs.logits[hidden].float()
        check_finite(model, logits)
        sums = torch.zeros(3, *labels.shape, dtype=torch.double, device=labels.device)
        sums[0][hidden] = F.cross_entropy(logits, labels[hidden], reduction="none").double()
        sums[1][hidden] = (logits.argmax(-1) == labels[hidden]).double()
        sums[2][hidden] = 1.0
        return keeper.of(batch, outputs) | {"sums": sums.sum(-1).T}

    seen = seen_over(model, batches, see, progress, lacking="batches without hidden words")
    rows = [part["sums"].cpu().numpy() for part in seen]
    if not any(part[:, 2].any() for part in rows):
        raise RequestError("eval_data must hold hidden words, got none")

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        nats, right, count = sums.T
        count = np.maximum(count, 1)
        return {"pseudo_perplexity": np.exp(np.minimum(nats / count, LARGEST)), "masked_accuracy": right / count}

    return Judged(*figures_and_intervals(np.concatenate(rows), figures), keeper.joined(seen))
