"""Logits that are not finite end an evaluation, with the weight that made them so where one is."""

import torch
from torch import Tensor, nn

from niwaki.errors import WorkError


def check_finite(model: nn.Module, values: Tensor) -> None:
    """Refuse logits, or what was made of them.

    Raises:
        WorkError: naming the first parameter of `model` that is not finite, or that all of them are.
    """
    if bool(torch.isfinite(values).all()):
        return
    broken = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    why = f"{broken} holds values that are not" if broken else "its weights are, so an activation overflowed"
    raise WorkError(f"evaluation: the model's outputs are not finite; {why}")
