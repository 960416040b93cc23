"""Which of llama.cpp's architectures reads a model, and what a file says of it before its weights.

`llama`, `qwen2` and `qwen3` have blocks that are all alike. Where they are not it is `deci`, whose numbers of heads, of
key/value heads and of neurons are lists; it is a Llama otherwise, and rotates as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from niwaki.anatomy import head_width, longest_input
from niwaki.errors import RequestError
from niwaki.export.gguf.blocks import Block, blocks_of

_UNEVEN = "deci"
_EVEN = {
    "llama": "llama",
    "mistral": "llama",
    "mobilellm": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""The architecture of even blocks, by type of model."""
_ADJACENT = ("llama", _UNEVEN)
"""Architectures that rotate pairs of columns that lie side by side."""
_ONLY_EVEN = {"qwen3": "which has no norms of queries"}
"""Types that the uneven architecture has no place for, and why."""
_WITHOUT_BIASES = ("qwen3",)
"""Types whose linears llama.cpp reads no biases of."""
_ROTATIONS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Architecture:
    """Its name, and the blocks in the form that it reads."""

    name: str
    blocks: list[Block]


def takes(config: Mapping[str, Any]) -> bool:
    """Whether a model with this `config.json` is, by its type and its layers, one that `architecture_of` finds one for.

    Layers that differ stand there in a table, see `niwaki.surgery.shapes`.
    """
    kind, uneven = config.get("model_type"), (config.get("quantization_config") or {}).get("layers")
    generates = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    return generates and kind in _EVEN and not (uneven and kind in _ONLY_EVEN)


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture that reads `model`, a plain model in float32.

    Raises:
        RequestError: a model that llama.cpp reads in no form here, by the part it has no place for.
    """
    config = cast(Any, model.config)
    kind = config.model_type
    if kind not in _EVEN:
        raise RequestError(f"to gguf takes models of type {', '.join(_EVEN)}, got {kind}; to merged takes all")
    rotation = (config.rope_parameters or {}).get("rope_type", "default")
    if rotation not in _ROTATIONS:
        raise RequestError(f"rope_type must be {', '.join(_ROTATIONS)} for to gguf, got {rotation!r}")
    for key, value in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
        found = getattr(config, key, None) or (config.rope_parameters or {}).get(key, value)
        if found != value:
            raise RequestError(f"{key} must be {value} for to gguf, got {found!r}")
    blocks = blocks_of(model, _EVEN[kind] in _ADJACENT)
    if not blocks:
        raise RequestError("to gguf needs a model with a head or a neuron left, got none in any layer")
    biased = next((name for block in blocks for name in block.tensors if name.endswith(".bias")), None)
    if kind in _WITHOUT_BIASES and biased is not None:
        rule = f"to gguf takes a {kind} model without biases, of which llama.cpp reads none there"
        raise RequestError(f"{rule}, got {biased}; to merged takes all")
    if len({block.shape for block in blocks}) == 1 and blocks[0].heads:
        return Architecture(_EVEN[kind], blocks)
    if kind in _ONLY_EVEN:
        rule = f"to gguf takes a {kind} model whose layers are alike, as uneven ones are read as deci"
        raise RequestError(f"{rule}, {_ONLY_EVEN[kind]}; prune with --allocation uniform, got {_range(blocks)}")
    return Architecture(_UNEVEN, blocks if _EVEN[kind] in _ADJACENT else blocks_of(model, adjacent=True))


def _range(blocks: list[Block]) -> str:
    """How far blocks differ, for an error."""
    heads, groups, neurons = (sorted(set(each)) for each in zip(*(block.shape for block in blocks), strict=True))
    spans = ((heads, "heads"), (groups, "key/value heads"), (neurons, "neurons"))
    return ", ".join(f"{sizes[0]} to {sizes[-1]} {what}" for sizes, what in spans if len(sizes) > 1)


def add_numbers(writer: Any, model: PreTrainedModel, architecture: Architecture) -> None:
    """Tell `writer`, a `gguf.GGUFWriter`, the numbers of the model: one each, or a list where blocks differ."""
    from gguf import RopeScalingType

    config = cast(Any, model.config)
    heads, groups, neurons = (list(each) for each in zip(*(block.shape for block in architecture.blocks), strict=True))
    if architecture.name != _UNEVEN:
        heads, groups, neurons = heads[0], groups[0], neurons[0]
    width, rotation = head_width(model), config.rope_parameters or {}
    writer.add_context_length(longest_text(model))
    writer.add_block_count(len(architecture.blocks))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(neurons)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rotation.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rotation.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotation["factor"]))


def longest_text(model: PreTrainedModel) -> int:
    """Tokens up to which a file computes what the model does: in these architectures no window slides over a text."""
    config = cast(Any, model.config)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ("sliding_attention",))
    window = getattr(config, "sliding_window", None) if slides else None
    return min(longest_input(model), int(window or longest_input(model)))


def frequency_factors(model: PreTrainedModel) -> Tensor | None:
    """What Llama 3 divides its frequencies of rotation by `[head width / 2]`; None for other models.

    As Transformers does it: long waves by the factor, short ones not at all, those between by a mixture.
    """
    rotation = cast(Any, model.config).rope_parameters or {}
    if rotation.get("rope_type") != "llama3":
        return None
    width, base = head_width(model), rotation["rope_theta"]
    wavelength = 2 * math.pi * base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    trained, low, high = (
        rotation[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    share = ((trained / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / rotation["factor"] + share)).float()
