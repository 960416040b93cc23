"""What each next token costs a language model, the logits of some tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.anatomy import Said
from niwaki.data.batches import UNLABELLED
from niwaki.evaluate.finite import check_finite


def token_losses(model: nn.Module, inputs: dict[str, Any], wanted: Tensor) -> Tensor:
    """Nats of the token `wanted` `[rows, length]` after each one of `inputs`; 0 where none counts (-100).

    Raises:
        WorkError: logits that are not finite.
    """
    said, counted = Said(model, inputs), wanted != UNLABELLED
    pairs = zip(said.parts(counted), wanted[counted].split(said.size), strict=True)
    losses = torch.zeros(wanted.shape, device=wanted.device)
    each = [F.cross_entropy(part().values.float(), after, reduction="none") for part, after in pairs]
    losses[counted] = torch.cat(each)
    check_finite(model, losses)
    return losses
