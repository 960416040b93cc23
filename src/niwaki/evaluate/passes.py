"""One pass of a model over evaluation data: what every metric against labels begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from niwaki.anatomy import evaluation_mode
from niwaki.data import without_labels
from niwaki.errors import RequestError
from niwaki.numerics.half import half_in_float32
from niwaki.progress import bar

Batch = dict[str, Any]


@contextmanager
def outputs_over(
    model: nn.Module, batches: Iterable[Batch], progress: bool, *, lacking: str | None = None
) -> Iterator[Iterator[tuple[Batch, Any]]]:
    """While open, evaluation mode, and pairs of a batch as it is given and what the model gives for its inputs.

    Raises:
        RequestError: a batch without `labels`, where `lacking` says what data without them are.
    """
    device = next(model.parameters()).device

    def pairs() -> Iterator[tuple[Batch, Any]]:
        for batch in bar(batches, phase="evaluate", unit="batches", progress=progress):
            if lacking is not None and "labels" not in batch:
                raise RequestError(f"eval_data must have labels, got {lacking}")
            yield batch, model(**{name: value.to(device) for name, value in without_labels(batch).items()})

    with evaluation_mode(model), half_in_float32(model):
        yield pairs()
