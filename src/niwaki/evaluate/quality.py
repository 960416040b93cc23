"""How good a model is at its task: the usual metrics, by the task and by what its labels are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import nn

from niwaki.anatomy import BODY, labels_of, pooling_of, supported_task, unwrap
from niwaki.data.tagged import of_entities
from niwaki.errors import RequestError, check_choice
from niwaki.evaluate.answers import ANSWER_METRICS, answered
from niwaki.evaluate.embeddings import EMBEDDING_METRICS, embeddings
from niwaki.evaluate.judged import Judged
from niwaki.evaluate.masked import MASKED_METRICS, masked_words
from niwaki.evaluate.perplexity import LANGUAGE_METRICS, next_tokens
from niwaki.evaluate.rows import (
    CLASS_METRICS,
    NUMBER_METRICS,
    SEVERAL_METRICS,
    choices,
    classes,
    numbers,
    several,
)
from niwaki.evaluate.tokens import ENTITY_METRICS, TAG_METRICS, tags

Measure = Callable[[nn.Module, Iterable[dict[str, Any]], bool], Judged]

_MEASURES: dict[tuple[str, str], tuple[tuple[str, ...], Measure]] = {
    ("text-classification", "class"): (CLASS_METRICS, classes),
    ("text-classification", "number"): (NUMBER_METRICS, numbers),
    ("text-classification", "several"): (SEVERAL_METRICS, several),
    ("multiple-choice", "choice"): (("accuracy",), choices),
    ("token-classification", "token"): (ENTITY_METRICS, tags),
    ("question-answering", "span"): (ANSWER_METRICS, answered),
    ("embedding", "none"): (EMBEDDING_METRICS, embeddings),
    ("causal", "word"): (LANGUAGE_METRICS, next_tokens),
    ("masked", "word"): (MASKED_METRICS, masked_words),
}
"""Task and kind of labels -> names of the metrics, the usual one first, and what measures them all at once."""
_LOWER_IS_BETTER = ("perplexity", "nats", "bits")
"""Words in the names of metrics."""
METRICS = tuple(dict.fromkeys(name for names, _ in _MEASURES.values() for name in names))


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is more; that of a task, `task/metric`, goes by its own name alone."""
    words = metric.rpartition("/")[2].partition(",")[0].replace(" ", "_").split("_")
    return not set(words).isdisjoint(_LOWER_IS_BETTER)


def measures_of(model: nn.Module) -> tuple[tuple[str, ...], Measure]:
    """The metrics of a model, by name, and what measures them.

    Raises:
        RequestError: a model without a task head that gives no vector a text.
    """
    task, labels = supported_task(model), labels_of(model)
    if task is BODY and pooling_of(model) is None:
        rule = "model must give one vector a text to be measured on pairs (--pooling mean or cls), or have a task head"
        raise RequestError(f"{rule} for labels, got {type(unwrap(model)).__name__}, {task.what}")
    names, measure = _MEASURES[task.name, labels]
    if names is ENTITY_METRICS and not of_entities(cast(Any, unwrap(model).config).id2label.values()):
        names = TAG_METRICS
    return names, measure


def check_metric(model: nn.Module, metric: str | None) -> None:
    """Refuse a metric that is unknown, or for another kind of model.

    Raises:
        RequestError: listing those that fit.
    """
    if metric is None:
        return
    check_choice("metric", metric, METRICS)
    names, _ = measures_of(model)
    if metric not in names:
        what = f"{supported_task(model).what} like this"
        raise RequestError(f"metric must be one of {', '.join(names)} for {what}, got {metric!r}")


def share_kept(metric: str, dense: float, pruned: float) -> float:
    """How much of the dense model's metric is left: 1 for all of it, more where the pruned model is better.

    Raises:
        RequestError: a dense model of which nothing can be kept.
    """
    if dense <= 0:
        raise RequestError(f"{metric} of the dense model must be above 0 for a share of it to be kept, got {dense:.4g}")
    if lower_is_better(metric):
        return dense / pruned
    return pruned / dense


def quality(
    model: nn.Module, batches: Iterable[dict[str, Any]], metric: str | None = None, progress: bool = False
) -> dict[str, float]:
    """Metric name -> value on the batches, which have labels: `metric` alone, or all that the task has.

    Raises:
        RequestError: an unknown metric, or one for another kind of model; batches without labels, or none.
        WorkError: logits that are not finite.
    """
    return judge(model, batches, metric, progress).quality


def judge(
    model: nn.Module, batches: Iterable[dict[str, Any]], metric: str | None = None, progress: bool = False
) -> Judged:
    """The same, with intervals and with what was said of every row. Raises as `quality`."""
    check_metric(model, metric)
    _, measure = measures_of(model)
    found = measure(model, batches, progress)
    if metric is not None and metric not in found.quality:
        known = ", ".join(found.quality)
        raise RequestError(f"metric must be one of {known} for these eval_data, got {metric!r}")
    return found if metric is None else found.of(metric)
