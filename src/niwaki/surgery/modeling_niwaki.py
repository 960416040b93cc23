"""A pruned DistilBertForSequenceClassification: layers of their own widths, as the table `niwaki` in its config says.

This file needs torch and transformers only. Niwaki copies it as it stands, but for the names of the class it starts
from and of its own, into the folders that load with `from_pretrained(folder, trust_remote_code=True)`. There the class
is named like the dense one, so that whoever reads the config knows the task.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DistilBertForSequenceClassification as Dense
from transformers.pytorch_utils import Conv1D


class EmptyAttention(nn.Module):
    """What is left of an attention module without heads: nothing is computed, an output projection adds its bias.

    The linears of `attention` stay where they were, without rows (the output projection without columns). `output` is
    the name of the output projection where that lies inside the module. A cache of keys and values still counts tokens.
    """

    def __init__(self, attention: Any, output: str | None = None) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.output_name = output
        self.layer_idx = getattr(attention, "layer_idx", None)
        self.train(attention.training)
        self.freeze_()

    def freeze_(self) -> None:
        """Ask for no gradient of what is never used: distributed training waits for each one that is asked for."""
        used = set() if self.output_name is None else set(self.get_submodule(self.output_name).parameters())
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter.numel() > 0 and parameter in used)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """The output for an empty context `[..., 0]`, or that context where the output is outside; no probabilities."""
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            # One number a token: a cache that is empty counts none.
            counted = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(counted, counted, self.layer_idx)
        context = hidden_states[..., :0]
        return (context if self.output_name is None else self.get_submodule(self.output_name)(context)), None


class NoInputs(Conv1D):
    """A `Conv1D` without inputs, which the plain one cannot be: it gives its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class OwnConfig:
    """The config that all layers share, but for the numbers that one layer has of its own."""

    def __init__(self, shared: Any, **own: int) -> None:
        self.__dict__.update(own)
        self._shared = shared

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":  # asked while it is being copied
            raise AttributeError(name)
        return getattr(self._shared, name)


def set_numbers_(attention: Any, numbers: dict[str, int]) -> None:
    """Set integers that an attention module keeps about its heads, in itself or (`config.name`) in its config."""
    for name, value in numbers.items():
        place, _, key = name.rpartition(".")
        if place:
            shared = attention.config._shared if isinstance(attention.config, OwnConfig) else attention.config
            attention.config = OwnConfig(shared, **{key: value})
        else:
            setattr(attention, key, value)


def narrow_(model: Any, table: dict[str, Any]) -> None:
    """Give the layers of a freshly built model (on any device, the meta device too) the shapes in `table`."""
    body = model.get_submodule(table["body"]) if table["body"] else model
    for layer, shape in zip(body.get_submodule(table["layers_path"]), table["shapes"], strict=True):
        for path, (rows, columns) in shape["linears"].items():
            _narrow_(layer.get_submodule(path), rows, columns)
        attention = layer.get_submodule(table["attention"])
        set_numbers_(attention, shape["numbers"])
        if shape["empty_attention"]:
            layer.set_submodule(table["attention"], EmptyAttention(attention, table["output_inside"]))


def _narrow_(linear: Any, rows: int, columns: int) -> None:
    """Make a linear `[rows, columns]`; its weights are still to come."""
    if isinstance(linear, Conv1D):
        linear.weight = nn.Parameter(linear.weight.detach()[:columns, :rows].clone())
        linear.nf, linear.nx = rows, columns
        if not columns:
            linear.__class__ = NoInputs
    else:
        linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
        linear.out_features, linear.in_features = rows, columns
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())


class PrunedForSequenceClassification(Dense):
    """The dense architecture, narrowed."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        narrow_(self, config.niwaki)
