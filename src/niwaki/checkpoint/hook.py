"""The quantizer hook of Transformers, by which uneven and packed models load through `from_pretrained`.

It is the one place where a model can be changed on the meta device before its weights arrive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from niwaki.anatomy import weight_of
from niwaki.checkpoint.masks import apply_saved_masks_, names_in
from niwaki.masks import MaskedLinear, mask_linear_, unpack
from niwaki.surgery.modeling_niwaki import EmptyAttention
from niwaki.surgery.narrow import apply_shapes_
from niwaki.surgery.shapes import METHOD, ShapesConfig

register_quantization_config(METHOD)(ShapesConfig)


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
    """Narrows the model on the meta device before its weights are loaded; afterwards it holds its masks."""

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> Any:
        config = cast(Any, self.quantization_config)
        if config.layers is not None or not (config.packed or config.masks):
            apply_shapes_(model, cast(Any, config.layers))
        for name, place in names_in(model, config.packed).items():
            model.set_submodule(place, PackedLinear(model.get_submodule(place), config.packed[name]))
        self.folder = Path(checkpoint_files[0]).parent if checkpoint_files else None
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = cast(Any, self.quantization_config)
        for place in names_in(model, config.packed).values():
            model.set_submodule(place, model.get_submodule(place).to_linear())
        if config.masks:
            apply_saved_masks_(model, self.folder, needed=True)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config._is_quantized = False
            if isinstance(module, EmptyAttention):
                module.freeze_()
        # From now on it is a model like any other: what it says of its files is the table, where it needs one.
        model.is_quantized = False
        del model.quantization_method, model.hf_quantizer, model.config.quantization_config
        if config.layers is not None:
            model.config.quantization_config = ShapesConfig(config.layers)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        return True

    @property
    def is_trainable(self) -> bool:  # type: ignore[override]
        return True
