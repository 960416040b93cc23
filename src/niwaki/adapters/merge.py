"""Adapters folded into the weights, masks written into them: plain modules again."""

from __future__ import annotations

from typing import cast

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.adapters.check import check_adapters, check_unmoved
from niwaki.adapters.effective import (
    mask_of,
)
from niwaki.adapters.masked_lora import lacks_mask, mask_adapters_
from niwaki.anatomy import (
    linears_of,
    own_config_,
    unwrap,
)
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, unmask_linear_


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that are held, by the name of the linear."""
    found = {linear.name: mask_of(linear.module) for linear in linears_of(model)}
    return {name: mask for name, mask in found.items() if mask is not None}


def remove_masks_(model: nn.Module) -> None:
    """Write the zeros of all masks into the weights and hold them no longer: plain modules again, in place.

    In a `PeftModel` this is for masked linears without LoRA around them: `s * B @ A` would fill the zeros of the others
    as soon as no mask holds them.

    Raises:
        RequestError: LoRA around a masked linear, or masks that a controller moves; nothing is changed.
    """
    check_unmoved(model)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), MaskedLinear):
            rule = "adapters must be merged (model = niwaki.merge_(model)) before the masks they are under are removed"
            raise RequestError(f"{rule}, got one around {name}")
    for module in list(model.modules()):
        if isinstance(module, MaskedLinear):
            unmask_linear_(module)


def merge_(model: nn.Module, *, mask_adapters: bool = False) -> PreTrainedModel:
    """Fold the active adapters into the weights and return the plain model; every zero stays zero.

    The plain model computes what `model` does: adapters that are disabled go, those that are merged already stay in. A
    plain model is returned as it is. `mask_adapters` puts the masks over adapters that do not hold them.

    Raises:
        RequestError: an adapter that was attached to a masked linear without its mask, so that its forward pass and
            its merge are not the same function; adapters that cannot be merged (see `check_adapters`).
    """
    check_adapters(model)
    if not isinstance(model, PeftModel):
        return unwrap(model)
    if mask_adapters:
        mask_adapters_(model)
    for linear in linears_of(model):
        if lacks_mask(linear.module):
            raise RequestError(
                f"adapter of {linear.name} must hold the mask of its base to be merged, got one without; "
                "ask for merge_(model, mask_adapters=True) to lose what it adds to the zeros"
            )
    _take_off_idle_(unwrap(model))
    _untie_adapted_(unwrap(model))
    return cast(PreTrainedModel, model.merge_and_unload())  # type: ignore[operator]


def _untie_adapted_(model: PreTrainedModel) -> None:
    """Give what an adapter is added to a weight of its own, where another module has the same.

    An adapter around the head of a model whose embeddings are tied to it changes the head alone; folded into the weight
    that both have it would change the embeddings, too.
    """
    shared: dict[int, dict[int, tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            shared.setdefault(id(weight), {})[id(module)] = module, name
    tied = [list(owners.values()) for owners in shared.values() if len(owners) > 1]
    adapted = {id(module.get_base_layer()) for module in model.modules() if isinstance(module, LoraLayer)}
    if not any(id(owner) in adapted for owners in tied for owner, _ in owners):
        return
    # A config ties all or nothing: biases, too, that heads of masked words hold under two names.
    own_config_(model).tie_word_embeddings = False
    for owners in tied:
        for owner, name in owners[1:]:
            weight = cast(nn.Parameter, getattr(owner, name))
            setattr(owner, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))


def _take_off_idle_(model: nn.Module) -> None:
    """Take off what the forward pass does not use but a merge would fold in: adapters that are disabled or merged."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper) and module.disable_adapters:
            model.set_submodule(name, module.original_module)
        elif isinstance(module, LoraLayer) and (module.disable_adapters or module.merged):
            if module.disable_adapters and module.merged:
                cast(LoraLinear, module).unmerge()
            model.set_submodule(name, module.get_base_layer())
