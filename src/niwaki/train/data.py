"""What a training goes through, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from niwaki.adapters import check_trainable
from niwaki.anatomy import accepts_of
from niwaki.config import LayerAdaptive, Structured
from niwaki.data import Batches, checked_batches
from niwaki.observe import Batch

TrainingData = Batches | list[Batch]
"""What is trained on: rows, which make other batches each epoch, or batches as they are."""


def training_data(model: nn.Module, data: Iterable[Batch], *, labels: bool, name: str = "data") -> TrainingData:
    """`data` to train `model` on, checked before anything is changed; with `labels`, for a loss that is taken on them.

    Raises:
        RequestError: see `niwaki.data.checked_batches`.
    """
    batches = checked_batches(accepts_of(model), data, name, labelled=labels)
    return data if isinstance(data, Batches) else batches


def recovery_data(
    model: nn.Module,
    config: Structured | LayerAdaptive,
    given: Iterable[Batch] | None,
    calibration: list[Batch],
) -> TrainingData:
    """What recovery will train on: the batches `given`, those of `calibration` where there are none.

    It comes before any work. Without `recover_epochs` nothing is looked at.

    Raises:
        RequestError: the model cannot be trained (see `check_trainable`), or the batches given are not what it takes.
    """
    if not config.recover_epochs:
        return calibration
    check_trainable(model)
    if given is None:
        return calibration
    return training_data(model, given, labels=False, name="training_data")
