"""The usual metric of a task: accuracy, F1, Matthews correlation; Pearson and Spearman where the label is a number;
perplexity of a language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor, nn

from niwaki.anatomy import evaluation_mode, is_language_model, is_regression
from niwaki.errors import RequestError, check_choice
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.perplexity import LANGUAGE_METRICS, perplexity
from niwaki.numerics.half import half_in_float32
from niwaki.progress import bar

CLASS_METRICS = ("accuracy", "f1", "matthews_correlation")
NUMBER_METRICS = ("pearson", "spearman")
METRICS = (*CLASS_METRICS, *NUMBER_METRICS, *LANGUAGE_METRICS)


@torch.inference_mode()
def predictions(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> tuple[Tensor, Tensor]:
    """Logits `[rows, labels]` and labels `[rows]` over all batches, on the CPU, in evaluation mode.

    Raises:
        RequestError: a batch without labels, or no batch. WorkError: logits that are not finite.
    """
    device = next(model.parameters()).device
    logits, labels = [], []
    with evaluation_mode(model), half_in_float32(model):
        for batch in bar(batches, phase="evaluate", unit="batches", progress=progress):
            if "labels" not in batch:
                raise RequestError("eval_data must have labels, got a table without a label column")
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            found = model(**inputs).logits.float().cpu()
            check_finite(model, found)
            logits.append(found)
            labels.append(batch["labels"].cpu())
    if not logits:
        raise RequestError("eval_data must hold at least one row, got none")
    return torch.cat(logits), torch.cat(labels)


def check_metric(model: nn.Module, metric: str | None) -> None:
    """Refuse a metric that is unknown, or for another kind of model.

    Raises:
        RequestError: listing those that fit.
    """
    if metric is None:
        return
    check_choice("metric", metric, METRICS)
    kind, fitting = "classes", CLASS_METRICS
    if is_language_model(model):
        kind, fitting = "a next token", LANGUAGE_METRICS
    elif is_regression(model):
        kind, fitting = "one output", NUMBER_METRICS
    if metric not in fitting:
        raise RequestError(f"metric must be one of {', '.join(fitting)} for a model with {kind}, got {metric!r}")


def quality(
    model: nn.Module, batches: Iterable[dict[str, Any]], metric: str | None = None, progress: bool = False
) -> dict[str, float]:
    """Metric name -> value on the batches.

    Without `metric`: accuracy, both correlations for a model with one output, all there are for a language model. F1 is
    that of class 1 for two classes, the mean over the classes for more. A correlation with something constant is 0.

    Raises:
        RequestError: an unknown metric, or one for another kind of model. WorkError: logits that are not finite.
    """
    check_metric(model, metric)
    if is_language_model(model):
        found = perplexity(model, batches, progress)
        return found if metric is None else {metric: found[metric]}
    numbers = is_regression(model)
    logits, labels = predictions(model, batches, progress)
    truth = labels.numpy()
    if numbers:
        found = _correlations(logits[:, 0].numpy(), truth)
        return found if metric is None else {metric: found[metric]}
    chosen = logits.argmax(-1).numpy()
    if metric == "matthews_correlation":
        constant = bool((chosen == chosen[0]).all() or (truth == truth[0]).all())
        return {metric: 0.0 if constant else float(matthews_corrcoef(truth, chosen))}
    if metric == "f1":
        average = "binary" if logits.shape[1] == 2 else "macro"
        return {metric: float(f1_score(truth, chosen, average=average, zero_division=cast(Any, 0.0)))}
    return {"accuracy": float(accuracy_score(truth, chosen))}


def _correlations(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if (values == values[0]).all() or (truth == truth[0]).all():
        return dict.fromkeys(NUMBER_METRICS, 0.0)
    pearson, spearman = cast(Any, pearsonr(values, truth)), cast(Any, spearmanr(values, truth))
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
