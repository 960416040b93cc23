"""LoRA seen as part of the weight: `W_eff = M * (W + sum over active adapters of s * B @ A)`, M a mask if held.

Scores are taken on, and repairs written to, the effective weight; the adapter itself is left as trained. Under a mask
the forward pass and the merge are the same function: PEFT's own layer with `get_delta_weight` masked, so that
`merge_and_unload`, `unmerge`, `save_pretrained`, several adapters and rank-stabilised LoRA work as they are. W itself
is left as it was under the mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from niwaki.anatomy import (
    check_task,
    check_units,
    is_language_model,
    linears_of,
    sites_of,
    unwrap,
    weight_of,
)
from niwaki.errors import RequestError
from niwaki.layout import is_transposed, turned
from niwaki.masks import MaskedLinear, mask_linear_, unmask_linear_


def check_model(model: nn.Module) -> None:
    """Refuse, before any work, a model that nothing here can be done with.

    Raises:
        RequestError: its family, its task or its adapters are not supported.
    """
    check_task(model)
    check_adapters(model)


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters whose effective weight is not `W + s * B @ A`.

    Raises:
        RequestError: a DoRA adapter, or a tuner other than LoRA.
    """
    if not isinstance(model, PeftModel):
        return
    for name, config in model.peft_config.items():
        check_adapter(name, config)


def check_adapter(name: str, config: PeftConfig) -> None:
    """Refuse an adapter by its config.

    Raises:
        RequestError: see `check_adapters`.
    """
    if str(config.peft_type).rpartition(".")[2] != "LORA":
        raise RequestError(f"adapter {name!r} must be LoRA, got {config.peft_type!s}; merge it first")
    if getattr(config, "use_dora", False):
        raise RequestError(f"adapter {name!r} must be plain or rank-stabilised LoRA, got DoRA; merge it first")


class MaskedLoraLinear(LoraLinear):
    """PEFT's LoRA linear around a `MaskedLinear`: `M * (W + s * B @ A)` in the forward pass and in the merge."""

    _stored: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """The mask of the base layer, `[out, in]`, True where the weight is kept."""
        return cast(MaskedLinear, self.get_base_layer()).mask

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What an adapter adds to the stored weight, in its layout, masked: PEFT's merge and unmerge use it."""
        return super().get_delta_weight(adapter) * turned(self, self.mask)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("adapter_names") is not None:
            raise RequestError("adapter_names must not be given for a masked model: a batch has one effective weight")
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or not active:
            return super().forward(x, *args, **kwargs)
        base = cast(MaskedLinear, self.get_base_layer())
        weight, bias = base.masked_weight, base.bias
        result: Tensor | float = 0.0
        for name in active:
            delta = _delta(self, name).to(weight.dtype)
            dropout = self.lora_dropout[name]
            if self.training and getattr(dropout, "p", 0.0) > 0:  # the adapter sees other inputs than the base
                result = result + F.linear(dropout(x), delta)
            else:
                weight = weight + delta
            if self.lora_bias[name]:
                result = result + self.lora_B[name].bias * self.scaling[name]
        return F.linear(x, base.watched(weight), bias) + result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's merge, after which the stored weight holds the zeros; what it was is kept for `unmerge`."""
        weight = weight_of(self)
        before = None if self.merged else weight.detach().clone()
        super().merge(safe_merge, adapter_names)
        if self.merged:
            self._stored = self._stored if before is None else before
            weight_of(self).data.mul_(self.mask)

    def unmerge(self) -> None:
        """The stored weight as it was before the first merge, bit for bit."""
        super().unmerge()
        if self._stored is not None:
            weight_of(self).data.copy_(self._stored)
            self._stored = None


_stock_merge = LoraLinear.merge


def _merge(self: LoraLinear, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
    """PEFT's merge, but for what an adapter learned to add to zeros: the mask would take it away without a word."""
    if _lacks_mask(self):
        raise RequestError(
            "adapter must hold the masks of its base to be merged, got one that was attached without; "
            "call niwaki.merge_(model, mask_adapters=True) to lose what it adds to the zeros"
        )
    _stock_merge(self, safe_merge, adapter_names)


LoraLinear.merge = _merge  # the one place that every way of merging goes through


def hold_(linear: nn.Module, mask: Tensor) -> None:
    """Make a linear, or a LoRA layer around one, hold a mask `[out, in]` (True: kept) from now on, in place.

    Raises:
        RequestError: a mask of another shape, or a LoRA layer of a kind whose weight is not `W + s * B @ A`.
    """
    if not isinstance(linear, LoraLayer):
        mask_linear_(linear, mask)
        return
    if type(linear) not in (LoraLinear, MaskedLoraLinear) or linear.lora_variant:
        raise RequestError(f"LoRA layer must be plain to hold a mask, got {type(linear).__name__} with a variant")
    if linear.merged:
        raise RequestError("adapter must be unmerged to hold a mask, got a merged one; call unmerge_adapter first")
    mask_linear_(linear.get_base_layer(), mask)
    cast(Any, linear).__class__ = MaskedLoraLinear


@contextmanager
def folded(part: nn.Module) -> Iterator[None]:
    """While open, linears inside `part` run on their effective weight as it is now, adapters and masks made up once."""
    changed = []
    try:
        for module in part.modules():
            plain = isinstance(module, LoraLinear) and not any(module.lora_bias.values())
            if plain or (isinstance(module, MaskedLinear) and module.watch is None):
                weight = effective_weight(module).to(weight_of(module).dtype)
                cast(Any, module).forward = partial(F.linear, weight=weight, bias=bias_of(module))
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def mask_of(linear: nn.Module) -> Tensor | None:
    """The mask that a linear or the base of a LoRA layer holds, `[out, in]`, or None."""
    base = getattr(linear, "base_layer", linear)
    return base.mask if isinstance(base, MaskedLinear) else None


def _lacks_mask(linear: nn.Module) -> bool:
    """Whether a LoRA layer is around a masked linear and does not hold its mask."""
    return isinstance(linear, LoraLayer) and mask_of(linear) is not None and not isinstance(linear, MaskedLoraLinear)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that are held, by the name of the linear."""
    found = {linear.name: mask_of(linear.module) for linear in linears_of(model)}
    return {name: mask for name, mask in found.items() if mask is not None}


def mask_adapters_(model: nn.Module) -> None:
    """Put the masks of the base over adapters that were attached (or trained) without them: an explicit request."""
    for linear in linears_of(model):
        mask = mask_of(linear.module)
        if mask is not None:
            hold_(linear.module, mask)


def release_(model: nn.Module) -> None:
    """Write the zeros of all masks into the weights of a plain model and hold them no longer."""
    for module in model.modules():
        if isinstance(module, MaskedLinear):
            unmask_linear_(module)


def adapter_delta(linear: nn.Module) -> Tensor | float:
    """What the active, unmerged adapters add to the stored weight, `[out, in]`; 0.0 for a plain linear."""
    if not isinstance(linear, LoraLayer) or linear.merged or linear.disable_adapters:
        return 0.0
    deltas = [_delta(linear, name) for name in linear.active_adapters if name in linear.lora_A]
    return cast(Tensor, sum(deltas)) if deltas else 0.0


def _delta(linear: LoraLayer, adapter: str) -> Tensor:
    """What one adapter adds to the stored weight, `[out, in]`."""
    return turned(cast(nn.Module, linear), cast(Any, linear).get_delta_weight(adapter))


def effective_weight(linear: nn.Module) -> Tensor:
    """The weight the forward pass uses, `[out, in]`, detached, in float32 whatever it is stored in."""
    mask = mask_of(linear)
    weight = weight_of(linear).float() + adapter_delta(linear)
    return (weight if mask is None else weight * mask).detach()


def dense_weight(linear: nn.Module) -> Tensor:
    """The weight the forward pass would use without a mask, `[out, in]`, detached: what would return is in it."""
    weight = weight_of(linear).detach()
    if not isinstance(linear, LoraLayer) or linear.merged or linear.disable_adapters:
        return weight.clone()
    with torch.no_grad():
        for name in (name for name in linear.active_adapters if name in linear.lora_A):
            weight = weight + turned(linear, LoraLinear.get_delta_weight(cast(LoraLinear, linear), name))
    return weight


def set_effective_weight_(linear: nn.Module, weight: Tensor) -> None:
    """Store `weight` minus what the adapters add, so that the forward pass uses `weight`; nothing under a mask.

    It is rounded once, to what the weight is stored in.
    """
    with torch.no_grad():
        stored, mask = weight_of(linear), mask_of(linear)
        wanted = (weight.to(stored.device, torch.float32) - adapter_delta(linear)).to(stored.dtype)
        stored.copy_(wanted if mask is None else torch.where(mask, wanted, stored))


def bias_of(linear: nn.Module) -> nn.Parameter | None:
    """The bias of a linear or of the base of a LoRA layer."""
    return cast("nn.Parameter | None", getattr(linear, "base_layer", linear).bias)


def attach_lora(model: nn.Module, rank: int) -> PeftModel:
    """A `PeftModel` around `model` (changed in place) with LoRA on all linears of the blocks, and the task head saved.

    `lora_alpha` is twice the rank. Linears that lost all their rows or columns get no factors. The head of a language
    model, which may be its embedding, is left as it is.

    Raises:
        RequestError: all of them did.
    """
    check_units(model)
    inner, language = unwrap(model), is_language_model(model)
    linears = {
        linear for site in sites_of(inner) for linear in (*site.inputs, site.output) if weight_of(linear).numel() > 0
    }
    head = [
        name
        for name, part in inner.named_children()
        if part is not inner.base_model and next(part.parameters(), None) is not None and not language
    ]
    config = LoraConfig(
        task_type="CAUSAL_LM" if language else "SEQ_CLS",
        fan_in_fan_out=any(is_transposed(linear) for linear in linears),
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[name for name, module in inner.named_modules() if module in linears],
        modules_to_save=head,
    )
    with warnings.catch_warnings():
        # PEFT asks Transformers by the old name.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        model = cast(PeftModel, get_peft_model(inner, config))
    mask_adapters_(model)
    return model


def to_train_(model: nn.Module, rank: int) -> PeftModel:
    """The `PeftModel` to train: `model` if it is one, else with new LoRA of this rank around it (see `attach_lora`).

    The active adapters and what they save beside LoRA (the task head) require gradients, and nothing else.
    """
    tuned = model if isinstance(model, PeftModel) else attach_lora(model, rank)
    for name, parameter in tuned.named_parameters():
        parts = name.split(".")
        owned = [after for part, after in pairwise(parts) if part.startswith("lora_") or part == "modules_to_save"]
        parameter.requires_grad_(any(adapter in tuned.active_adapters for adapter in owned))
    return tuned


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
