"""LoRA seen as part of the weight: what the forward pass uses, attached, masked and merged without loss."""

from niwaki.adapters.attach import (
    attach_lora,
    check_float32,
    check_rank,
    check_trainable,
    check_weights_trainable,
    forget_base_,
    forget_initialisation_,
    to_train_,
    weights_to_train_,
)
from niwaki.adapters.check import check_adapter, check_adapters, check_masked, check_model, check_unmerged
from niwaki.adapters.effective import (
    adapter_bias,
    adapter_delta,
    bias_of,
    dense_weight,
    effective_bias,
    effective_weight,
    mask_of,
    materialized_weights,
    set_effective_bias_,
    set_effective_weight_,
)
from niwaki.adapters.masked_lora import MaskedLoraLinear, apply_mask_, lift_mask_, mask_adapters_
from niwaki.adapters.merge import masks_of, merge_, remove_masks_

__all__ = [
    "MaskedLoraLinear",
    "adapter_bias",
    "adapter_delta",
    "apply_mask_",
    "attach_lora",
    "bias_of",
    "check_adapter",
    "check_adapters",
    "check_float32",
    "check_masked",
    "check_model",
    "check_rank",
    "check_trainable",
    "check_unmerged",
    "check_weights_trainable",
    "dense_weight",
    "effective_bias",
    "effective_weight",
    "forget_base_",
    "forget_initialisation_",
    "lift_mask_",
    "mask_adapters_",
    "mask_of",
    "masks_of",
    "materialized_weights",
    "merge_",
    "remove_masks_",
    "set_effective_bias_",
    "set_effective_weight_",
    "to_train_",
    "weights_to_train_",
]
