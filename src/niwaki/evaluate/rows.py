"""Metrics of models that say one thing a row: a class, several labels, or a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import Predictions, unwrap
from niwaki.errors import RequestError
from niwaki.evaluate.finite import check_finite
from niwaki.evaluate.judged import Answers, Judged, order_of, readable
from niwaki.evaluate.passes import seen_over
from niwaki.evaluate.sums import f1, figures_and_intervals, ratio
from niwaki.processes import Parts

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

    def see(batch: dict[str, Any], outputs: Any) -> Parts:
        logits = outputs.logits.float().cpu()
        check_finite(model, logits)
        return {"logits": logits, "labels": batch["labels"].cpu()}

    seen = seen_over(model, batches, see, progress, lacking="a table without a label column")
    if not seen:
        raise RequestError("eval_data must hold at least one row, got none")
    return torch.cat([part["logits"] for part in seen]), torch.cat([part["labels"] for part in seen])


def classes(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`CLASS_METRICS`. F1 is that of class 1 for two classes, the mean over the classes that occur for more.

    The correlation (Matthews; Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient",
    2004) with something constant is 0.
    """
    logits, labels = predictions(model, batches, progress)
    names = cast("dict[int, str]", unwrap(model).config.id2label)
    return _of_classes("class", logits, labels, batches, tuple(names[index] for index in range(logits.shape[1])))


def choices(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """The share of the rows whose right text is the likeliest."""
    logits, labels = predictions(model, batches, progress)
    return _of_classes("choice", logits, labels, batches).of("accuracy")


def _of_classes(
    kind: str, logits: Tensor, labels: Tensor, batches: Iterable[dict[str, Any]], names: tuple[str, ...] = ()
) -> Judged:
    chosen, truth, count = logits.argmax(-1).numpy(), labels.numpy(), logits.shape[1]

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        right, found, wanted = sums.reshape(len(sums), 3, count).transpose(1, 0, 2).astype(float)
        rows = wanted.sum(-1)
        by_class, occurs = f1(right, found, wanted), found + wanted > 0
        both = (found * wanted).sum(-1)
        apart = (rows**2 - (found**2).sum(-1)) * (rows**2 - (wanted**2).sum(-1))
        return {
            "accuracy": right.sum(-1) / rows,
            "f1": by_class[:, 1] if count == 2 else ratio(by_class.sum(-1), occurs.sum(-1)),
            "matthews_correlation": ratio(right.sum(-1) * rows - both, np.sqrt(apart)),
        }

    cells, counts = np.unique(truth * count + chosen, return_counts=True)
    wanted, found = (np.eye(count)[part] for part in np.divmod(cells, count))
    quality, interval = figures_and_intervals(np.hstack([wanted * found, found, wanted]), figures, counts)
    text = readable(batches)
    answers = Answers(
        kind=kind,
        values=chosen.tolist(),
        truth=truth.tolist(),
        right=(chosen == truth).tolist(),
        order=order_of(batches, len(truth)),
        text=text if names else lambda index: "",
        shown=lambda index, value: names[value] if names else f"{value + 1}: {text(index).split(' | ')[value]}",
        names=names,
    )
    return Judged(quality, interval, Predictions("class", logits), answers)


def several(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`SEVERAL_METRICS`, a label holding where its probability is above `THRESHOLD`; a label never met counts 0."""
    logits, labels = predictions(model, batches, progress)
    found, wanted = (logits.sigmoid() > THRESHOLD).numpy(), labels.numpy() > THRESHOLD
    whole, count = (found == wanted).all(1), logits.shape[1]

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        right, got, asked = sums[:, :-2].reshape(len(sums), 3, count).transpose(1, 0, 2)
        return {
            "f1_micro": f1(right.sum(-1), got.sum(-1), asked.sum(-1)),
            "f1_macro": f1(right, got, asked).mean(-1),
            "subset_accuracy": sums[:, -2] / sums[:, -1],
        }

    ones = np.ones(len(found))
    parts = [found & wanted, found, wanted, whole[:, None], ones[:, None]]
    quality, interval = figures_and_intervals(np.hstack([part.astype(float) for part in parts]), figures)
    names = cast("dict[int, str]", unwrap(model).config.id2label)
    answers = Answers(
        kind="labels",
        values=[tuple(np.flatnonzero(row).tolist()) for row in found],
        truth=[tuple(np.flatnonzero(row).tolist()) for row in wanted],
        right=whole.tolist(),
        order=order_of(batches, len(found)),
        text=readable(batches),
        shown=lambda index, value: ", ".join(names[label] for label in value) or "none",
        names=tuple(names[index] for index in range(count)),
    )
    return Judged(quality, interval, Predictions("labels", logits), answers)


def numbers(model: nn.Module, batches: Iterable[dict[str, Any]], progress: bool = False) -> Judged:
    """`NUMBER_METRICS` of what the model gives and the labels."""
    logits, labels = predictions(model, batches, progress)
    values, truth = logits[:, 0].numpy().astype(float), np.asarray(labels.numpy(), float)
    quality, interval = correlations(values, truth)
    answers = of_numbers(values, truth, order_of(batches, len(truth)), readable(batches))
    return Judged(quality, interval, Predictions("number", logits), answers)


def of_numbers(values: np.ndarray, truth: np.ndarray, order: list[int], text: Any) -> Answers:
    """Numbers as answers."""
    return Answers("number", values.tolist(), truth.tolist(), None, order, text, lambda _, value: f"{value:.3g}")


def correlations(values: np.ndarray, truth: np.ndarray) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """`NUMBER_METRICS` of two rows of numbers, and their intervals; that with something constant is 0.

    That of Spearman is Pearson's of the ranks, which in its interval stay those among all rows.
    """
    from scipy.stats import rankdata  # here: it takes a second to import

    if (values == values[0]).all() or (truth == truth[0]).all():
        return dict.fromkeys(NUMBER_METRICS, 0.0), {}
    pairs = [(values, truth), (rankdata(values), rankdata(truth))]

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        halves = zip(NUMBER_METRICS, (sums[:, :6], sums[:, 6:]), strict=True)
        return {name: _pearson(half) for name, half in halves}

    return figures_and_intervals(np.hstack([_products(*pair) for pair in pairs]), figures)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What each pair adds to a correlation, `[rows, 6]`: 1, x, y, xx, yy, xy, both on a scale of their own."""
    x, y = ((row - row.mean()) / row.std() for row in (x, y))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    spread = np.clip(n * xx - x * x, 0, None) * np.clip(n * yy - y * y, 0, None)
    return ratio(n * xy - x * y, np.sqrt(spread))
