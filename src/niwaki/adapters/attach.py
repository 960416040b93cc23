"""New LoRA around a plain model, and which of its parameters are trained."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from niwaki.adapters.masked_lora import mask_adapters_
from niwaki.anatomy import (
    check_units,
    is_language_model,
    sites_of,
    unwrap,
    weight_of,
)
from niwaki.numerics.layout import is_transposed


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
