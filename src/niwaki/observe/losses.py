"""The task loss that is run backward while observing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.anatomy import supported_task
from niwaki.errors import RequestError, WorkError
from niwaki.observe.statistics import Batch


def summed_task_loss(model: nn.Module, batch: Batch, mean: Tensor | None) -> Tensor:
    """The task loss of a batch summed over all that the model's own is the mean of: rows, tokens, next tokens.

    Raises:
        RequestError: a batch without labels. WorkError: a loss that is not finite.
    """
    if mean is None:
        rule = "data must hold labels for scores from task gradients (fisher, taylor, gradient, output-gradient)"
        raise RequestError(f"{rule}, got batches without `labels`")
    if not bool(torch.isfinite(mean)):
        raise WorkError("calibration: the task loss is not finite")
    return mean * supported_task(model).losses(batch)
