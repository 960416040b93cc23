"""A new head begins with what labels are like on average: the constant prediction that has the least loss.

Its bias is the log odds of each of several labels, the log of the frequency of each class, the mean of a number. From
zero, a bias moves by no more than the learning rate in a step, and where labels are rare it is the features that learn
to be that constant, and say nothing any more (Lin et al., ICCV 2017, section 4.1, begin so for rare classes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from niwaki.anatomy import labels_of, unwrap
from niwaki.checkpoint import new_parameters
from niwaki.checkpoint.task import output_layer
from niwaki.data.batches import UNLABELLED
from niwaki.observe import Batch

_WRAPPED = re.compile(r"\.modules_to_save\.[^.]+")
"""What PEFT adds to the name of a head that it trains whole."""


@torch.no_grad()
def begin_with_prior_(model: nn.Module, data: Iterable[Batch]) -> None:
    """Give the output layer of `model`, where it is new, the bias that suits the labels of `data`, in place.

    One that was trained, or has no bias, stays; so do heads whose labels are places or choices.
    """
    kind = labels_of(model)
    if kind not in ("class", "token", "several", "number"):
        return
    name, layer = output_layer(unwrap(model))
    new = f"{_WRAPPED.sub('', name)}.bias" in new_parameters(model)
    if new and layer.bias is not None and not bool(layer.bias.any()):
        layer.bias.copy_(_prior(kind, [batch["labels"] for batch in data], len(layer.bias)))


def _prior(kind: str, labels: list[Tensor], outputs: int) -> Tensor:
    """The bias `[outputs]` for labels of a kind; a label that never is counts as if it once was."""
    if kind == "number":
        return torch.cat([part.flatten() for part in labels]).double().mean()
    if kind == "several":
        rows = sum(map(len, labels))
        held = torch.stack([part.double().sum(0) for part in labels]).sum(0)
        return torch.logit((held + 1) / (rows + 2))
    every = torch.cat([part[part != UNLABELLED] for part in labels])
    counts = torch.bincount(every, minlength=outputs).double() + 1
    return (counts / counts.sum()).log()
