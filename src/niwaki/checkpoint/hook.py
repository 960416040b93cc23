"""The quantizer hook of Transformers, by which uneven and packed models load through `from_pretrained`.

It is the one place where a model can be changed on the meta device before its weights arrive.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from niwaki.anatomy import weight_of
from niwaki.masks import MaskedLinear, mask_linear_, unpack
from niwaki.surgery.modeling_niwaki import EmptyAttention
from niwaki.surgery.shapes import apply_shapes_

METHOD = "niwaki"
"""Name of the quantizer hook, and key of the table in the config of a remote-code export."""
OWN_KEYS = ("quantization_config", METHOD, "auto_map")


@register_quantization_config(METHOD)
class ShapesConfig(QuantizationConfigMixin):
    """The table of shapes in `config.json`, where the quantizer hook of Transformers finds it.

    `packed` has the number of kept weights of every linear that is stored as bits and values.
    """

    def __init__(
        self, layers: list[dict[str, int]] | None = None, packed: dict[str, int] | None = None, **_: Any
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layers = layers
        self.packed = packed or {}


class PackedLinear(nn.Module):
    """Stands where a linear was while its bits and values are loaded; see `niwaki.masks.pack`."""

    bitmask: Tensor

    def __init__(self, linear: nn.Linear | Conv1D, kept: int) -> None:
        super().__init__()
        weight = weight_of(linear)
        self.shape = (int(weight.shape[0]), int(weight.shape[1]))
        self.kind = Conv1D if isinstance(linear, Conv1D) else nn.Linear
        self.bias = linear.bias
        self.weight = torch.empty(0)  # some models draw the weights of their linears by name (GPT-2, ModernBERT)
        self.values = nn.Parameter(weight.new_empty(kept), requires_grad=False)
        self.register_buffer("bitmask", torch.empty(-(-weight.numel() // 8), dtype=torch.uint8, device=weight.device))

    def to_linear(self) -> MaskedLinear:
        """The linear, holding its mask."""
        weight, mask = unpack(self.bitmask, self.values.detach(), self.shape)
        if self.kind is Conv1D:
            conv = Conv1D(*self.shape)
            conv.weight, conv.bias = nn.Parameter(weight.T.contiguous()), cast(nn.Parameter, self.bias)
            return mask_linear_(conv, mask)
        linear = nn.Linear(self.shape[1], self.shape[0], bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(weight), self.bias
        return mask_linear_(linear, mask)


@register_quantizer(METHOD)
class ShapesLoader(HfQuantizer):
    """Narrows the model on the meta device before its weights are loaded."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = cast(Any, self.quantization_config)
        if config.layers is not None or not config.packed:
            apply_shapes_(model, cast(Any, config.layers))
        for name, kept in config.packed.items():
            model.set_submodule(name, PackedLinear(model.get_submodule(name), kept))
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name in cast(Any, self.quantization_config).packed:
            model.set_submodule(name, model.get_submodule(name).to_linear())
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config._is_quantized = False
            if isinstance(module, EmptyAttention):
                module.freeze_()
        model.is_quantized = False
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        return True

    @property
    def is_trainable(self) -> bool:  # type: ignore[override]
        return True


def forget_(config: Any) -> None:
    """Take all that Niwaki writes out of a config."""
    for key in OWN_KEYS:
        if hasattr(config, key):
            delattr(config, key)
