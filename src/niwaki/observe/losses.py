"""The losses that are run backward while observing: the task's own, and a contrast of the model's logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.anatomy import is_language_model
from niwaki.errors import RequestError, WorkError
from niwaki.observe.statistics import Batch


def summed_task_loss(model: nn.Module, batch: Batch, mean: Tensor | None) -> Tensor:
    """The task loss of a batch summed over its rows (over its next tokens, for a language model), from the model's own.

    Raises:
        RequestError: a batch without labels. WorkError: a loss that is not finite.
    """
    if "labels" not in batch or mean is None:
        rule = "data must hold labels for scores from task gradients (fisher, taylor, gradient, output-gradient)"
        raise RequestError(f"{rule}, got batches without `labels`")
    if not bool(torch.isfinite(mean)):
        raise WorkError("calibration: the task loss is not finite")
    return mean * losses_in(model, batch)


def losses_in(model: nn.Module, batch: Batch) -> int:
    """How many losses the model's own loss on the batch is the mean of: those of its rows, or of its next tokens."""
    if is_language_model(model):
        return max(1, int((batch["labels"][:, 1:] != -100).sum()))
    return len(batch["labels"])


def logit_contrast(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over rows of one logit, drawn evenly, less the mean of the row; the logit itself where there is only one.

    Rows count alike however sure the model is of them; that is the gradient of the KL to the model's own distribution
    in the limit of a high temperature. The mean of its g g^T is so a Fisher information (Martens, "New insights and
    perspectives on the natural gradient method", 2020) that does not vanish where the model is right.
    """
    if logits.shape[-1] == 1:
        return logits.sum()
    drawn = torch.randint(logits.shape[-1], (*logits.shape[:-1], 1), generator=generator).to(logits.device)
    return (logits.gather(-1, drawn) - logits.mean(-1, keepdim=True)).sum()
