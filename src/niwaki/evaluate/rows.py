"""Metrics of models that say one thing a row: a class, several labels, or a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.passes import outputs_over

CLASS_METRICS = ("accuracy", "f1", "matthews_correlation")
NUMBER_METRICS = ("pearson", "spearman")
SEVERAL_METRICS = ("f1_micro", "f1_macro", "subset_accuracy")
THRESHOLD = 0.5
"""A label holds where its probability is above this."""


@torch.inference_mode()
def predictions(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> tuple[Tensor, Tensor]:
    """Logits `[rows, labels]` and labels `[rows, ...]` over all batches, on the CPU, in evaluation mode.

    Raises:
        RequestError: a batch without labels, or no batch. WorkError: logits that are not finite.
    """
    logits, labels = [], []
    with outputs_over(model, batches, progress, lacking="a table without a label column") as pairs:
        for batch, outputs in pairs:
            found = outputs.logits.float().cpu()
            check_finite(model, found)
            logits.append(found)
            labels.append(batch["labels"].cpu())
    if not logits:
        raise RequestError("eval_data must hold at least one row, got none")
    return torch.cat(logits), torch.cat(labels)


def classes(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`CLASS_METRICS`. F1 is that of class 1 for two classes, the mean over the classes for more.

    The correlation with something constant is 0.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef  # here: it takes a second to import

    logits, labels = predictions(model, batches, progress)
    chosen, truth = logits.argmax(-1).numpy(), labels.numpy()
    constant = bool((chosen == chosen[0]).all() or (truth == truth[0]).all())
    average = "binary" if logits.shape[1] == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(truth, chosen)),
        "f1": float(f1_score(truth, chosen, average=average, zero_division=cast(Any, 0.0))),
        "matthews_correlation": 0.0 if constant else float(matthews_corrcoef(truth, chosen)),
    }


def choices(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """The share of the rows whose right text is the likeliest."""
    return {"accuracy": classes(model, batches, progress)["accuracy"]}


def several(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`SEVERAL_METRICS`, a label holding where its probability is above `THRESHOLD`; a label never met counts 0."""
    from sklearn.metrics import accuracy_score, f1_score  # here: it takes a second to import

    logits, labels = predictions(model, batches, progress)
    chosen, truth = (logits.sigmoid() > THRESHOLD).long().numpy(), labels.long().numpy()
    zero = cast(Any, 0.0)
    return {
        "f1_micro": float(f1_score(truth, chosen, average="micro", zero_division=zero)),
        "f1_macro": float(f1_score(truth, chosen, average="macro", zero_division=zero)),
        "subset_accuracy": float(accuracy_score(truth, chosen)),
    }


def numbers(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> dict[str, float]:
    """`NUMBER_METRICS` of what the model gives and the labels."""
    logits, labels = predictions(model, batches, progress)
    return correlations(logits[:, 0].numpy(), np.asarray(labels.numpy()))


def correlations(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`NUMBER_METRICS` of two rows of numbers; that with something constant is 0."""
    from scipy.stats import pearsonr, spearmanr  # here: it takes a second to import

    if (values == values[0]).all() or (truth == truth[0]).all():
        return dict.fromkeys(NUMBER_METRICS, 0.0)
    pearson, spearman = cast(Any, pearsonr(values, truth)), cast(Any, spearmanr(values, truth))
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
