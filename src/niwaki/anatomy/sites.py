"""The sites of a model: for each layer, its attention heads and its FFN neurons, and the linears that carry them.

A *unit* (head or neuron) owns `width` consecutive columns of the site's output projection and the same rows of its
input projections (q, k, v or up).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.anatomy.families import Family, family_of
from niwaki.errors import RequestError

Kind = Literal["attention", "ffn"]


@dataclass(frozen=True, eq=False)
class Site:
    """The heads, or the neurons, of one layer.

    `inputs` are the projections into the units (rows belong to units), `output` the projection out of them
    (columns belong to units). `residual_sum` is the module whose input is residual + output. Each linear is an
    `nn.Linear` or a PEFT LoRA layer around one. The units of a `fixed` site cannot be removed.
    """

    name: str
    kind: Kind
    layer: int
    units: int
    width: int
    inputs: tuple[nn.Module, ...]
    output: nn.Module
    residual_sum: nn.Module
    attention: nn.Module | None
    fixed: bool

    @property
    def columns(self) -> int:
        """Columns of the output projection: `units * width`."""
        return self.units * self.width


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Transformers model inside a `PeftModel`, or the model itself."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise RequestError(f"model must be a PreTrainedModel or a PeftModel around one, got {type(model).__name__}")
    return inner


def body_of(model: nn.Module) -> nn.Module:
    """The encoder without its task head."""
    return unwrap(model).base_model


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The transformer layers, in order."""
    return cast(nn.ModuleList, body_of(model).get_submodule(family_of(unwrap(model)).layers))


def weight_of(linear: nn.Module) -> nn.Parameter:
    """The stored weight `[out, in]` of a linear or of the base of a LoRA layer (without the adapter)."""
    return cast(nn.Parameter, getattr(linear, "base_layer", linear).weight)


def columns_of(units: Tensor, width: int) -> Tensor:
    """Columns of the output projection, and rows of the input projections, that `units` of this width own; in order."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def linear_paths(family: Family, kind: Kind) -> tuple[str, ...]:
    """Paths inside a layer of the linears of one kind of site, the output projection last."""
    if kind == "attention":
        return family.query, family.key, family.value, family.output
    return family.up, family.down


def empty_linears(model: nn.Module) -> list[str]:
    """Names, inside the Transformers model, of the linears of sites that have no units left.

    A new adapter has nothing to adapt there: `LoraConfig(exclude_modules=empty_linears(model))`.
    """
    empty = {id(linear) for site in sites_of(model) if not site.units for linear in (*site.inputs, site.output)}
    return [name for name, module in unwrap(model).named_modules() if id(module) in empty]


def sites_of(model: nn.Module) -> list[Site]:
    """Every site, layer by layer, attention before FFN.

    Raises:
        RequestError: no family row; a quantised model; a part that is not a linear.
    """
    inner = unwrap(model)
    family = family_of(inner)
    quantised = getattr(inner.config, "quantization_config", None)
    method = str(getattr(quantised, "quant_method", "")).rpartition(".")[2]
    if quantised is not None and method != "niwaki":
        raise RequestError(f"model must hold float weights, got one quantised with {method}; quantise after pruning")
    head_width = _head_width(inner, family)
    sites: list[Site] = []
    for index, layer in enumerate(layers_of(model)):
        sites.append(_site(f"layer.{index}.attention", "attention", index, head_width, family, layer))
        sites.append(_site(f"layer.{index}.ffn", "ffn", index, 1, family, layer))
    return sites


def _site(name: str, kind: Kind, index: int, width: int, family: Family, layer: nn.Module) -> Site:
    total = family.attention_sum if kind == "attention" else family.ffn_sum
    paths = linear_paths(family, kind)
    linears = [layer.get_submodule(path) for path in paths]
    for path, linear in zip(paths, linears, strict=True):
        if not isinstance(getattr(linear, "base_layer", linear), nn.Linear):
            raise RequestError(f"{name}.{path} must be a linear layer with float weights, got {type(linear).__name__}")
    columns = weight_of(linears[-1]).shape[1]
    return Site(
        name=name,
        kind=kind,
        layer=index,
        units=columns // width,
        width=width,
        inputs=tuple(linears[:-1]),
        output=linears[-1],
        residual_sum=layer.get_submodule(total),
        attention=layer.get_submodule(family.attention) if kind == "attention" else None,
        fixed=kind == "attention" and family.heads_fixed,
    )


def _head_width(model: PreTrainedModel, family: Family) -> int:
    config = model.config
    return int(config.hidden_size) // int(getattr(config, family.heads_key))
