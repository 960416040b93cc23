"""Which adapters can be pruned: those of a `PeftModel`, LoRA whose effective weight is `W + s * B @ A`."""

from __future__ import annotations

import dataclasses

from peft import PeftConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from niwaki.adapters.effective import bias_of, mask_of
from niwaki.adapters.masked_lora import fills_zeros
from niwaki.anatomy import check_task, linears_of
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear


def check_model(model: nn.Module) -> None:
    """Refuse, before any work, a model that nothing here can be done with.

    Raises:
        RequestError: its family, its task or its adapters are not supported; weights that are not in memory, or were
            made under inference mode.
    """
    check_task(model)
    away = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if away is not None:
        rule = "model must hold its weights in memory (a device_map without disk, and no offloading to the CPU)"
        raise RequestError(f"{rule}, got {away} offloaded")
    made = next((name for name, parameter in model.named_parameters() if parameter.is_inference()), None)
    if made is not None:
        raise RequestError(f"model must be made outside torch.inference_mode, as {made} cannot be trained or changed")
    check_adapters(model)
    if any(mask_of(linear.module) is not None for linear in linears_of(model)):
        check_unmerged(model)
        check_masked(model)


def check_unmoved(model: nn.Module) -> None:
    """Refuse to take masks or units from under a controller of dynamic sparsity, which would go on with what is gone.

    Raises:
        RequestError: the training of one has not ended; names a linear whose mask it moves.
    """
    for name, module in model.named_modules():
        if isinstance(module, MaskedLinear) and module.mover is not None:
            rule = "model must be in no training with dynamic sparsity (call finish or detach of its controller first)"
            raise RequestError(f"{rule}, got one that moves the mask of {name}")


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters whose effective weight is not `W + s * B @ A`, or which cannot be merged or saved.

    Raises:
        RequestError: adapters inside a model that is no `PeftModel`; a tuner other than LoRA or a variant of LoRA;
            `lora_bias` where the linear has no bias; several adapters that each train a block's linears whole.
    """
    if not isinstance(model, PeftModel):
        _check_plain(model)
        return
    for name, config in model.peft_config.items():
        check_adapter(name, config)
        if getattr(config, "ensure_weight_tying", False) and getattr(config, "target_modules", None):
            rule = f"adapter {name!r} must be made without ensure_weight_tying, as what PEFT ties so cannot be copied"
            raise RequestError(f"{rule}; merge it first")
    _check_copies(model)
    for linear in linears_of(model, emptied=True):
        layer = linear.module
        if not isinstance(layer, LoraLayer):
            continue
        if not isinstance(layer, LoraLinear):
            raise RequestError(f"adapter of {linear.name} must be plain LoRA, got {type(layer).__name__}")
        if any(layer.lora_bias.values()) and bias_of(layer) is None:
            raise RequestError(f"lora_bias must be False where a linear has no bias, got True for {linear.name}")


def _check_copies(model: PeftModel) -> None:
    """Refuse several copies of what is pruned: the one that runs alone would be."""
    pruned = {id(linear.module) for linear in linears_of(model, emptied=True)}
    for name, wrapper in model.named_modules():
        copies = len(wrapper.modules_to_save) if isinstance(wrapper, ModulesToSaveWrapper) else 0
        if copies > 1 and not pruned.isdisjoint(map(id, wrapper.modules())):
            rule = "modules_to_save must hold none of the blocks' linears where there are several adapters"
            raise RequestError(f"{rule}, got {name}; merge or delete those that are not pruned with")


def check_unmerged(model: nn.Module) -> None:
    """Refuse adapters that are merged where the base is to hold masks: nothing could take them out again.

    Raises:
        RequestError: naming the linear.
    """
    for linear in linears_of(model):
        if isinstance(linear.module, LoraLayer) and linear.module.merged:
            rule = "adapter must be unmerged (model.unmerge_adapter()) where its base holds a mask"
            raise RequestError(f"{rule}, got a merged one around {linear.name}")


def check_masked(model: nn.Module) -> None:
    """Refuse adapters that fill zeros of their base: what is done under its mask would lose that without a word.

    Raises:
        RequestError: naming the linear.
    """
    for linear in linears_of(model):
        if fills_zeros(linear.module):
            rule = f"adapter of {linear.name} must hold the mask of its base, got one that adds to its zeros"
            raise RequestError(f"{rule}; niwaki.adapters.mask_adapters_(model) takes that from all of them")


def _check_plain(model: nn.Module) -> None:
    """Refuse adapters that no `PeftModel` holds: saved as a plain model, either they or their base would be lost."""
    name = next((name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None)
    if name is not None:
        rule = (
            "adapter must be held by a PeftModel (peft.get_peft_model, PeftModel.from_pretrained), not by add_adapter"
        )
        raise RequestError(f"{rule}, got one inside a {type(model).__name__}, around {name}")


def check_adapter(name: str, config: PeftConfig) -> None:
    """Refuse an adapter by its config.

    Raises:
        RequestError: see `check_adapters`.
    """
    if str(config.peft_type).rpartition(".")[2] != "LORA":
        raise RequestError(f"adapter {name!r} must be LoRA, got {config.peft_type!s}; merge it first")
    if getattr(config, "use_dora", False):
        raise RequestError(f"adapter {name!r} must be plain or rank-stabilised LoRA, got DoRA; merge it first")
    variants = [field.name for field in dataclasses.fields(config) if _is_variant(config, field)]
    if variants:
        rule = f"adapter {name!r} must be plain or rank-stabilised LoRA"
        raise RequestError(f"{rule}, got {variants[0]} {getattr(config, variants[0])!r}; merge it first")


def _is_variant(config: PeftConfig, field: dataclasses.Field[object]) -> bool:
    """Whether PEFT would take another formula than `W + s * B @ A` for what this field of a config says."""
    value = getattr(config, field.name)
    return value in field.metadata.get("lora_variants", ()) or bool(value and field.metadata.get("is_lora_variant"))
