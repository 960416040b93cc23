"""Mixed precision: products in half precision, what is trained and its optimizer in float32.

By `torch.amp` (Micikevicius et al., ICLR 2018): under autocast linears and attention are computed in bfloat16 or
float16, losses and norms in float32. float16 has no small numbers, so the loss is scaled up before the backward pass;
a step whose gradients are then too large for it is skipped, and the scale halved.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from niwaki.config import Training
from niwaki.errors import RequestError

_KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(model: nn.Module, options: Training) -> None:
    """Refuse a precision that the device of `model` does not compute in.

    Raises:
        RequestError: saying so.
    """
    device = _device(model)
    known = torch.amp.is_autocast_available(device.type)
    if device.type == "cuda" and options.mixed_precision == "bf16":
        known = torch.cuda.is_bf16_supported()
    if options.mixed_precision != "no" and not known:
        raise RequestError(f"mixed_precision must be another on device {device}, got {options.mixed_precision!r}")


def autocast(model: nn.Module, options: Training) -> AbstractContextManager[object]:
    """A context in which `model` computes as it is asked."""
    if options.mixed_precision == "no":
        return nullcontext()
    return torch.autocast(_device(model).type, _KINDS[options.mixed_precision])


def scaler_for(model: nn.Module, options: Training) -> torch.amp.GradScaler | None:
    """What scales the loss of a training of `model`; None where nothing does."""
    return torch.amp.GradScaler(_device(model).type) if options.mixed_precision == "fp16" else None


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
