"""The task loss that is run backward while observing: the model's own, of a language model a part at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import Predictions, Said, is_language_model, supported_task
from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError, WorkError
from niwaki.observe.statistics import Batch

_WITHOUT_LABELS = (
    "data must hold labels for scores from task gradients (fisher, taylor, gradient, output-gradient), "
    "got batches without `labels`"
)


def task_loss_backward(model: nn.Module, batch: Batch, said: Said) -> None:
    """Run the task loss of a batch backward, summed over all that the model's own is the mean of.

    That is rows, tokens or next tokens.

    Raises:
        RequestError: a batch without labels. WorkError: a loss that is not finite.
    """
    if not is_language_model(model):
        _summed(model, batch, getattr(said.outputs, "loss", None)).backward()
        return
    after = F.pad(batch["labels"][:, 1:], (0, 1), value=UNLABELLED)
    counted = after != UNLABELLED
    wanted = after[counted]

    def loss_of(part: Predictions, place: slice) -> Tensor:
        loss = F.cross_entropy(part.values.float(), wanted[place], reduction="sum")
        _check_finite(loss)
        return loss

    said.backward(counted, loss_of)


def check_losses(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Refuse batches of which the model gives no loss.

    Raises:
        RequestError: one without labels.
    """
    names = ("start_positions",) if supported_task(model).labels == "span" else ("labels",)
    if not is_language_model(model) and any(batch.get(name) is None for batch in batches for name in names):
        raise RequestError(_WITHOUT_LABELS)


def _summed(model: nn.Module, batch: Batch, mean: Tensor | None) -> Tensor:
    """The sum of which the model gave the `mean`; nothing of a batch that has no losses, whose mean is no number."""
    if mean is None:
        raise RequestError(_WITHOUT_LABELS)
    if not supported_task(model).losses(batch):
        return mean.nan_to_num() * 0.0
    _check_finite(mean)
    return mean * supported_task(model).losses(batch)


def _check_finite(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss)):
        raise WorkError("calibration: the task loss is not finite")
