"""A pruned DistilBertForSequenceClassification: layers of their own widths, as the table `niwaki` in its config says.

This file needs torch and transformers only. Niwaki copies it as it stands, but for the name of the class it starts
from, into the folders that load with `from_pretrained(folder, trust_remote_code=True)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DistilBertForSequenceClassification as Dense


class EmptyAttention(nn.Module):
    """What is left of an attention module without heads: nothing is computed, an output projection adds its bias.

    The linears of `attention` stay where they were, without rows (the output projection without columns). `output` is
    the name of the output projection where that lies inside the module.
    """

    def __init__(self, attention: nn.Module, output: str | None = None) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.output_name = output
        self.train(attention.training)
        self.freeze_()

    def freeze_(self) -> None:
        """Ask for no gradient of what is never used: distributed training waits for each one that is asked for."""
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter.numel() > 0)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """The output for an empty context `[..., 0]`, or that context where the output is outside; no probabilities."""
        context = hidden_states[..., :0]
        return (context if self.output_name is None else self.get_submodule(self.output_name)(context)), None


def narrow_(model: Any, table: dict[str, Any]) -> None:
    """Give the layers of a freshly built model (on any device, the meta device too) the shapes in `table`."""
    layers = model.base_model.get_submodule(table["layers_path"])
    for layer, shape in zip(layers, table["layers"], strict=True):
        columns = shape["heads"] * table["head_width"]
        _narrow_(layer, table["attention_inputs"], table["attention_output"], columns)
        _narrow_(layer, table["ffn_inputs"], table["ffn_output"], shape["neurons"])
        attention = layer.get_submodule(table["attention"])
        for name, value in {table["head_count"]: shape["heads"], table["all_head_size"]: columns}.items():
            if name is not None:
                setattr(attention, name, value)
        if not shape["heads"]:
            output = table["attention_output"].removeprefix(table["attention"] + ".")
            inside = output != table["attention_output"]
            layer.set_submodule(table["attention"], EmptyAttention(attention, output if inside else None))


def _narrow_(layer: nn.Module, inputs: list[str], output: str, units: int) -> None:
    """Keep `units` rows of the projections in `inputs` and as many columns of `output`."""
    for path in inputs:
        linear: Any = layer.get_submodule(path)
        linear.weight = nn.Parameter(linear.weight.detach()[:units].clone())
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach()[:units].clone())
        linear.out_features = units
    linear = layer.get_submodule(output)
    linear.weight = nn.Parameter(linear.weight.detach()[:, :units].clone())
    linear.in_features = units


class PrunedForSequenceClassification(Dense):
    """The dense architecture, narrowed."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        narrow_(self, config.niwaki)
