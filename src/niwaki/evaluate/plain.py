"""The model as others load it, which is what is timed: adapters merged, masks written into the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import unwrap
from niwaki.masks import MaskedLinear

Model = TypeVar("Model", bound=nn.Module)


def plain_model(model: nn.Module) -> PreTrainedModel:
    """`model` itself where it is plain already, else a plain copy; `model` is not changed.

    What is neither adapted nor masked is shared with `model`, not copied. A copy is not compiled.
    """
    changed = [module for module in model.modules() if isinstance(module, BaseTunerLayer | MaskedLinear)]
    compiled = any(module._compiled_call_impl for module in model.modules())
    if not (changed or compiled or isinstance(model, PeftModel)):
        return unwrap(model)
    # An adapter that lacks the mask of its base is no obstacle here: what it adds to the zeros takes no time.
    plain = merge_(copy_apart(model, changed), mask_adapters=True)
    remove_masks_(plain)
    return plain


def copy_apart(model: Model, parts: Iterable[nn.Module]) -> Model:
    """A copy of `model` that has tensors of its own in these modules of it, and shares all others with `model`."""
    own = {id(tensor) for part in parts for tensor in _tensors(part)}
    shared = {id(tensor): tensor for tensor in _tensors(model) if id(tensor) not in own}
    return copy.deepcopy(model, shared)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
