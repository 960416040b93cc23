"""The blocks of a model as a GGUF file holds them: their numbers, and their tensors by the names of the format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.anatomy import head_width, layers_of, runs_of

_ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
}
_FFN = {
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROTATED = ("attn_q", "attn_k")
FEWEST_NEURONS = 32
"""Neurons of a block without any, all zero: llama.cpp drops a block that has attention and no FFN."""


@dataclass(frozen=True)
class Block:
    """One run of a layer: query heads, key/value heads, neurons; `tensors` by the format's names, in float32."""

    heads: int
    groups: int
    neurons: int
    tensors: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """What an even model has alike in all blocks."""
        return self.heads, self.groups, self.neurons


def blocks_of(model: PreTrainedModel, adjacent: bool) -> list[Block]:
    """The blocks that do something, in the order in which they run.

    `adjacent`: the engine rotates pairs of columns that lie side by side, where Transformers rotates the first half of
    a head with the second; the rows of queries and keys are put in that order. A block without neurons gets some that
    are zero; the first one gets a head of zeros where it has none, from which llama.cpp learns the width of a head.
    """
    found: list[Block] = []
    width = head_width(model)
    for layer in cast("Iterator[nn.Module]", iter(layers_of(model))):
        neurons = cast(Any, layer.get_submodule("mlp.down_proj")).weight.shape[1]
        heads = cast(Any, layer.get_submodule("self_attn.o_proj")).weight.shape[1] // width
        groups = cast(Any, layer.get_submodule("self_attn.k_proj")).weight.shape[0] // width
        says = any(_constants(layer, part) for part in ("self_attn.o_proj", "mlp.down_proj"))
        if not (heads or neurons or says):
            continue
        tensors: dict[str, Tensor] = {}
        padded_heads = 1 if not heads and (not found or _constants(layer, "self_attn.o_proj")) else 0
        if heads or padded_heads:
            tensors |= _tensors(layer, _ATTENTION, padded_heads * width)
        padded_neurons = 0 if neurons else FEWEST_NEURONS
        tensors |= _tensors(layer, _FFN, padded_neurons)
        if adjacent:
            for name in tensors:
                if name.partition(".")[0] in _ROTATED:
                    tensors[name] = _side_by_side(tensors[name], width)
        block = Block(heads + padded_heads, groups + padded_heads, neurons + padded_neurons, tensors)
        found.extend([block] * runs_of(model))
    return found


def _constants(layer: nn.Module, path: str) -> bool:
    """Whether a linear without columns still adds something."""
    return cast(Any, layer.get_submodule(path)).bias is not None


def _tensors(layer: nn.Module, names: dict[str, str], zeros: int) -> dict[str, Tensor]:
    """Weights and biases of the modules of `names` that the layer has; linears with `zeros` units more."""
    found: dict[str, Tensor] = {}
    modules = dict(layer.named_modules())
    for path, name in names.items():
        module = modules.get(path)
        if module is None:
            continue
        for kind, tensor in module.named_parameters():
            tensor = tensor.detach().float()
            if zeros and isinstance(module, nn.Linear):
                outputs = name in ("attn_output", "ffn_down")
                if not outputs:
                    tensor = torch.cat([tensor, tensor.new_zeros(zeros, *tensor.shape[1:])])
                elif tensor.dim() == 2:
                    tensor = torch.cat([tensor, tensor.new_zeros(tensor.shape[0], zeros)], 1)
            found[f"{name}.{kind}"] = tensor
    return found


def _side_by_side(rows: Tensor, width: int) -> Tensor:
    """Rows `[heads * width, ...]` of each head: 0, half, 1, half + 1, ..."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).reshape(rows.shape)
