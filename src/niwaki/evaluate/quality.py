"""The usual metric of a task: accuracy, F1, Matthews correlation; Pearson and Spearman where the label is a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor, nn

from niwaki.anatomy import unwrap
from niwaki.errors import RequestError, WorkError, check_choice

METRICS = ("accuracy", "f1", "matthews_correlation")


@torch.inference_mode()
def predictions(model: nn.Module, batches: Iterable[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Logits `[rows, labels]` and labels `[rows]` over all batches, in evaluation mode.

    Raises:
        RequestError: a batch without labels. WorkError: logits that are not finite.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    logits, labels = [], []
    for batch in batches:
        if "labels" not in batch:
            raise RequestError("eval_data must have labels, got a table without a label column")
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        logits.append(model(**inputs).logits.cpu())
        labels.append(batch["labels"])
    model.train(training)
    found = torch.cat(logits)
    if not bool(torch.isfinite(found).all()):
        raise WorkError("evaluation: the model's logits are not finite")
    return found, torch.cat(labels)


def quality(model: nn.Module, batches: Iterable[dict[str, Any]], metric: str | None = None) -> dict[str, float]:
    """Metric name -> value on the batches."""
    if metric is not None:
        check_choice("metric", metric, METRICS)
    logits, labels = predictions(model, batches)
    truth = labels.numpy()
    if unwrap(model).config.num_labels == 1:
        values = logits[:, 0].numpy()
        pearson, spearman = cast(Any, pearsonr(values, truth)), cast(Any, spearmanr(values, truth))
        return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
    chosen = logits.argmax(-1).numpy()
    if metric == "matthews_correlation":
        return {metric: float(matthews_corrcoef(truth, chosen))}
    if metric == "f1":
        return {metric: float(f1_score(truth, chosen, average="binary" if logits.shape[1] == 2 else "macro"))}
    return {"accuracy": float(accuracy_score(truth, chosen))}
