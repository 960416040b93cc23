"""LoRA seen as part of the weight: `W_eff = W + sum over active adapters of s * B @ A`.

Scores are taken on, and repairs written to, the effective weight; the adapter itself is left as trained.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.anatomy import sites_of, unwrap, weight_of
from niwaki.errors import RequestError


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters whose effective weight is not `W + s * B @ A`.

    Raises:
        RequestError: a DoRA adapter, or a tuner other than LoRA.
    """
    if not isinstance(model, PeftModel):
        return
    for name, config in model.peft_config.items():
        if str(config.peft_type).rpartition(".")[2] != "LORA":
            raise RequestError(f"adapter {name!r} must be LoRA, got {config.peft_type!s}; merge it first")
        if getattr(config, "use_dora", False):
            raise RequestError(f"adapter {name!r} must be plain or rank-stabilised LoRA, got DoRA; merge it first")


def adapter_delta(linear: nn.Module) -> Tensor | float:
    """What the active, unmerged adapters add to the stored weight, `[out, in]`; 0.0 for a plain linear."""
    if not isinstance(linear, LoraLayer) or linear.merged:
        return 0.0
    deltas = [cast(Any, linear).get_delta_weight(name) for name in linear.active_adapters if name in linear.lora_A]
    return cast(Tensor, sum(deltas)) if deltas else 0.0


def effective_weight(linear: nn.Module) -> Tensor:
    """The weight the forward pass uses, `[out, in]`, detached."""
    return (weight_of(linear) + adapter_delta(linear)).detach()


def set_effective_weight_(linear: nn.Module, weight: Tensor) -> None:
    """Store `weight` minus what the adapters add, so that the forward pass uses `weight`."""
    with torch.no_grad():
        stored = weight_of(linear)
        stored.copy_(weight.to(stored) - adapter_delta(linear))


def bias_of(linear: nn.Module) -> nn.Parameter | None:
    """The bias of a linear or of the base of a LoRA layer."""
    return cast("nn.Parameter | None", getattr(linear, "base_layer", linear).bias)


def attach_lora(model: nn.Module, rank: int) -> PeftModel:
    """A `PeftModel` around `model` (changed in place) with LoRA on all linears of the blocks, and the task head saved.

    `lora_alpha` is twice the rank. Linears that lost all their rows or columns get no factors.
    """
    inner = unwrap(model)
    linears = {
        linear for site in sites_of(inner) for linear in (*site.inputs, site.output) if weight_of(linear).numel() > 0
    }
    head = [
        name
        for name, part in inner.named_children()
        if part is not inner.base_model and next(part.parameters(), None) is not None
    ]
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[name for name, module in inner.named_modules() if module in linears],
        modules_to_save=head,
    )
    with warnings.catch_warnings():
        # PEFT asks Transformers by the old name.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return cast(PeftModel, get_peft_model(inner, config))


def train_adapters_only_(model: PeftModel) -> None:
    """Let the active adapters and what they save beside LoRA (the task head) require gradients, and nothing else."""
    for name, parameter in model.named_parameters():
        active = any(f".{adapter}." in f"{name}." for adapter in model.active_adapters)
        parameter.requires_grad_(active and ("lora_" in name or ".modules_to_save." in name))


def merge_(model: nn.Module) -> PreTrainedModel:
    """Fold the active adapters into the weights and return the plain model. A plain model is returned as it is."""
    if isinstance(model, PeftModel):
        check_adapters(model)
        return cast(PreTrainedModel, model.merge_and_unload())  # type: ignore[operator]
    return unwrap(model)
