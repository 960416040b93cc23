"""Adapters folded into the weights, masks written into them: plain modules again."""

from __future__ import annotations

from typing import cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.adapters.check import check_adapters
from niwaki.adapters.effective import (
    mask_of,
)
from niwaki.adapters.masked_lora import _lacks_mask, mask_adapters_
from niwaki.anatomy import (
    linears_of,
    unwrap,
)
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, unmask_linear_


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that are held, by the name of the linear."""
    found = {linear.name: mask_of(linear.module) for linear in linears_of(model)}
    return {name: mask for name, mask in found.items() if mask is not None}


def remove_masks_(model: nn.Module) -> None:
    """Write the zeros of all masks into the weights of a plain model and hold them no longer."""
    for module in model.modules():
        if isinstance(module, MaskedLinear):
            unmask_linear_(module)


def merge_(model: nn.Module, *, mask_adapters: bool = False) -> PreTrainedModel:
    """Fold the active adapters into the weights and return the plain model; every zero stays zero.

    A plain model is returned as it is. `mask_adapters` puts the masks over adapters that do not hold them.

    Raises:
        RequestError: an adapter that was attached to a masked linear without its mask, so that its forward pass and
            its merge are not the same function.
    """
    if not isinstance(model, PeftModel):
        return unwrap(model)
    check_adapters(model)
    if mask_adapters:
        mask_adapters_(model)
    for linear in linears_of(model):
        if _lacks_mask(linear.module):
            raise RequestError(
                f"adapter of {linear.name} must hold the mask of its base to be merged, got one without; "
                "ask for merge_(model, mask_adapters=True) to lose what it adds to the zeros"
            )
    return cast(PreTrainedModel, model.merge_and_unload())  # type: ignore[operator]
