"""What a model computes beside its tensors: how its layers are configured, and which adapters act how much."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from niwaki.anatomy import unwrap

_NO_MATTER = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "quantization_config"),
)
"""Keys of a config that change no number, or that loading and running a model set by themselves."""


def computed_by(model: nn.Module) -> dict[str, Any]:
    """Plain data, the same of models that compute the same where their tensors are the same."""
    config = {key: value for key, value in unwrap(model).config.to_dict().items() if key not in _NO_MATTER}
    layers = {
        name: [module.scaling, module.active_adapters, module.merged_adapters, module.disable_adapters]
        for name, module in (model.named_modules() if isinstance(model, PeftModel) else ())
        if isinstance(module, LoraLayer)
    }
    return {"config": config, "adapters": layers}
