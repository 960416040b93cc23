"""The sites of a model: for each layer, its attention heads and its FFN neurons, and the linears that carry them.

A *unit* owns `width` consecutive columns of the site's output projection, and rows of its input projections (see
`niwaki.anatomy.projections`). It is a neuron, or an attention head; under grouped-query attention it is a key/value
head with all the query heads that share it, or, where `query_heads` is asked, each of these query heads. Then the
keys and values of a group stay as long as one of its query heads does, and every group that stays has to keep as many
of them as the others.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from niwaki.anatomy.families import Family, Reads, family_of
from niwaki.anatomy.projections import Projection, check_linear, projection, weight_of
from niwaki.errors import RequestError

Kind = Literal["attention", "ffn"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Units:
    """The heads, or the neurons, of one layer, counted.

    `in_groups` says that units are query heads which share keys and values. They lie in `groups` of equal size, one
    after another, of which each has to keep as many as the others. The units of a `fixed` site cannot be removed.
    """

    name: str
    kind: Kind
    layer: int
    units: int
    in_groups: bool
    groups: int
    fixed: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Site(Units):
    """The heads, or the neurons, of one layer.

    `reads` are the projections into the units (rows belong to units), `output` the one out of them (columns belong to
    units). `residual_sum` is the module whose input is residual + output, or the layer, whose own output that is;
    None where the sum is nowhere to be seen. `heads` is the number of query heads of a unit. Each linear is an
    `nn.Linear`, a `Conv1D`, or a PEFT LoRA layer around one. A layer `runs` so many times in one pass through the
    model.
    """

    width: int
    heads: int
    reads: tuple[Projection, ...]
    output: nn.Module
    residual_sum: nn.Module | None
    attention: nn.Module | None
    causal: bool
    runs: int

    @property
    def counted(self) -> Units:
        """The same without its linears."""
        return Units(**{field.name: getattr(self, field.name) for field in fields(Units)})

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        """The linears of `reads`."""
        return tuple(read.module for read in self.reads)

    @property
    def output_name(self) -> str:
        """The name of `output` among the linears of the blocks."""
        return f"layer.{self.layer}.{'output' if self.kind == 'attention' else 'down'}"

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
    """The encoder or decoder without its task head."""
    inner = unwrap(model)
    body = inner.base_model
    # Some classes (Llama 4's) say that their body has another name than it has.
    return cast(nn.Module, getattr(inner, "model", body)) if body is inner else body


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The transformer layers, in order."""
    return cast(nn.ModuleList, body_of(model).get_submodule(family_of(unwrap(model)).layers))


def linear_paths(family: Family, kind: Kind) -> tuple[str, ...]:
    """Paths inside a layer of the linears of one kind of site, the output projection last."""
    if kind == "attention":
        return *(read.path for read in family.attention_in), family.attention_out
    return *(read.path for read in family.ffn_in), family.ffn_out


def empty_linears(model: nn.Module) -> list[str]:
    """Names, inside the Transformers model, of the linears of sites that have no units left.

    A new adapter has nothing to adapt there: `LoraConfig(exclude_modules=empty_linears(model))`.
    """
    empty = {id(linear) for site in sites_of(model) if not site.units for linear in (*site.inputs, site.output)}
    return [name for name, module in unwrap(model).named_modules() if id(module) in empty]


def sites_of(model: nn.Module, query_heads: bool = False) -> list[Site]:
    """Every site, layer by layer, attention before FFN; `query_heads` makes each query head of a group a unit.

    Raises:
        RequestError: no family row; a quantised model; a part that is not a linear.
    """
    inner = unwrap(model)
    family = family_of(inner)
    quantised = getattr(inner.config, "quantization_config", None)
    named = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "")
    method = str(named).rpartition(".")[2]
    if quantised is not None and method != "niwaki":
        raise RequestError(f"model must hold float weights, got one quantised with {method}; quantise after pruning")
    sites: list[Site] = []
    for index, layer in enumerate(layers_of(model)):
        for kind in ("attention", "ffn"):
            for path in linear_paths(family, kind):
                check_linear(layer.get_submodule(path), f"layer.{index}.{kind}.{path}")
        sites.append(_site("attention", index, layer, inner, _heads(layer, inner, query_heads)))
        sites.append(_site("ffn", index, layer, inner, _NEURON))
    return sites


@dataclass(frozen=True)
class _Unit:
    """What the units of a site are: how many columns and rows each has, and how they lie."""

    width: int
    rows: dict[str, int]
    """Rows in a run of each letter (see `niwaki.anatomy.families`); 0 where none are a unit's own, but `common`."""
    common: int = 0
    heads: int = 1
    groups: int = 1
    in_groups: bool = False


_NEURON = _Unit(1, {"n": 1})


def _heads(layer: nn.Module, model: PreTrainedModel, query_heads: bool) -> _Unit:
    """Heads of one layer as it stands; one without any has as many query heads in a group as the config says."""
    family, head = family_of(model), head_width(model)
    heads, groups = heads_of_unit(model), 0
    if heads > 1:
        queries = weight_of(layer.get_submodule(family.attention_out)).shape[1] // head
        groups = _groups(family.attention_in, layer, queries, head)
        heads = queries // groups if groups else heads
    if query_heads and groups:
        return _Unit(head, {"q": head, "k": 0, "v": 0}, groups * head, groups=groups, in_groups=True)
    return _Unit(head * heads, {"q": head * heads, "k": head, "v": head}, heads=heads)


def _site(kind: Kind, index: int, layer: nn.Module, model: PreTrainedModel, unit: _Unit) -> Site:
    family, name, attention = family_of(model), f"layer.{index}.{kind}", kind == "attention"
    reads = family.attention_in if attention else family.ffn_in
    total = family.attention_sum if attention else family.ffn_sum
    output = layer.get_submodule(linear_paths(family, kind)[-1])
    units = weight_of(output).shape[1] // unit.width
    return Site(
        name=name,
        kind=kind,
        layer=index,
        units=units,
        width=unit.width,
        heads=unit.heads,
        in_groups=unit.in_groups,
        groups=unit.groups,
        reads=tuple(projection(read, layer, units, unit.rows, name, unit.common, unit.groups) for read in reads),
        output=output,
        residual_sum=None if total is None else layer.get_submodule(total),
        attention=layer.get_submodule(family.attention) if attention else None,
        fixed=attention and family.heads_fixed,
        causal=looks_back_only(model),
        runs=runs_of(model),
    )


def _groups(reads: tuple[Reads, ...], layer: nn.Module, queries: int, head: int) -> int:
    """Key/value heads of a layer as it stands: what its keys have rows for."""
    read = next(read for read in reads if "k" in read.order)
    rows = weight_of(layer.get_submodule(read.path)).shape[0] // head
    return (rows - queries * read.order.count("q")) // sum(read.order.count(letter) for letter in "kv")


def looks_back_only(model: nn.Module) -> bool:
    """Whether a token attends to those before it alone: as its family does, unless the config says otherwise."""
    inner = unwrap(model)
    config = inner.config
    if not family_of(inner).causal:
        return bool(getattr(config, "is_decoder", False))
    both_ways = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    return not both_ways


def head_width(model: PreTrainedModel) -> int:
    """Width of one attention head."""
    config, family = cast(Any, model.config), family_of(model)
    own = getattr(config, family.width_key, None) if family.width_key else None
    return int(own or int(config.hidden_size) // int(getattr(config, family.heads_key)))


def runs_of(model: nn.Module) -> int:
    """How many times each layer runs, one run right after the other, in a pass through the model."""
    return int(getattr(unwrap(model).config, "repeats", 1))


def heads_of_unit(model: PreTrainedModel) -> int:
    """Query heads that share a key/value head by the model's config; 1 without grouped queries."""
    config, family = cast(Any, model.config), family_of(model)
    groups = getattr(config, family.groups_key, None) if family.groups_key else None
    return int(getattr(config, family.heads_key)) // int(groups) if groups else 1
