"""One pass of a model over evaluation data: what every metric against labels begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from niwaki.anatomy import evaluation_mode
from niwaki.data import without_labels
from niwaki.errors import RequestError
from niwaki.numerics.half import half_in_float32
from niwaki.processes import Parts, shared_out
from niwaki.progress import bar

Batch = dict[str, Any]


def seen_over(
    model: nn.Module,
    batches: Iterable[Batch],
    see: Callable[[Batch, Any], Parts],
    progress: bool,
    *,
    lacking: str | None = None,
) -> list[Parts]:
    """What `see` makes of each batch as it is given and of what the model, in evaluation mode, gives for its inputs.

    Several processes share the batches, and all know what was seen of all, in order.

    Raises:
        RequestError: a batch without `labels`, where `lacking` says what data without them are.
    """
    device = next(model.parameters()).device

    def run(batch: Batch) -> Parts:
        if lacking is not None and "labels" not in batch:
            raise RequestError(f"eval_data must have labels, got {lacking}")
        return see(batch, model(**{name: value.to(device) for name, value in without_labels(batch).items()}))

    with evaluation_mode(model), half_in_float32(model):
        return shared_out(bar(batches, phase="evaluate", unit="batches", progress=progress), run)
