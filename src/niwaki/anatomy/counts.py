"""Exact counts of parameters and FLOPs, per site and for the whole model.

FLOPs are multiply-accumulates x 2 of the linears and of the two attention products, for one sequence of `length`
real tokens; norms, biases and softmax are not counted. A head of width `w` in a model of width `d` costs
`2 * length * (4 d w + 2 length w)`, a neuron `2 * length * 2 d`, 3 d where it is gated. Of g query heads that share a
key and a value head it is `2 * length * ((2 g + 2) d w + 2 length g w)`. In a causal model a token sees itself and what
came before, so `length` in the products (not before them) is `(length + 1) / 2`; sliding windows are not counted. All
of it counts as often as the layer runs. LoRA factors are not counted: they merge.
"""

from __future__ import annotations

from dataclasses import dataclass

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from niwaki.anatomy.projections import weight_of
from niwaki.anatomy.sites import Site, body_of, layers_of, sites_of, unwrap


@dataclass(frozen=True)
class Counts:
    """Parameters of the three parts of a model, and FLOPs of its blocks for one sequence.

    A pooler, through which one vector a row goes to what a task makes of it, is a part of the head.
    """

    block_params: int
    embedding_params: int
    head_params: int
    block_flops: float
    zeros: int


def unit_params(site: Site) -> int:
    """Parameters that leave the blocks with one unit of `site`: rows with their biases, and columns."""
    rows = sum(read.rows.shape[1] * (weight_of(read.module).shape[1] + _has_bias(read.module)) for read in site.reads)
    return rows + site.width * weight_of(site.output).shape[0]


def unit_flops(site: Site, length: float) -> float:
    """FLOPs of one unit of `site` for one sequence of `length` tokens."""
    linears = sum(read.rows.shape[1] * weight_of(read.module).shape[1] for read in site.reads)
    linears += site.width * weight_of(site.output).shape[0]
    seen = (length + 1) / 2 if site.causal else length
    products = 2 * seen * site.width if site.kind == "attention" else 0.0
    return 2.0 * length * (linears + products) * site.runs


def common_params(site: Site) -> int:
    """Parameters of `site` that no unit owns, and that leave the blocks with its last one."""
    return sum(read.common.numel() * (weight_of(read.module).shape[1] + _has_bias(read.module)) for read in site.reads)


def common_flops(site: Site, length: float) -> float:
    """FLOPs of `site`, for one sequence of `length` tokens, that go with its last unit only."""
    return 2.0 * length * site.runs * sum(read.common.numel() * weight_of(read.module).shape[1] for read in site.reads)


def count(model: nn.Module, length: float) -> Counts:
    """Count a model as it stands. `length` is the mean number of real tokens of a sequence."""
    layers = layers_of(model)
    block = sum(_without_adapters(layers))
    total = sum(_without_adapters(unwrap(model)))
    body = sum(_without_adapters(body_of(model)))
    pooler = getattr(body_of(model), "pooler", None)
    body -= sum(_without_adapters(pooler)) if isinstance(pooler, nn.Module) else 0
    flops = sum(site.units * unit_flops(site, length) for site in sites_of(model))
    zeros = sum(int((p == 0).sum()) for s in sites_of(model) for p in map(weight_of, (*s.inputs, s.output)))
    return Counts(block, body - block, total - body, flops, zeros)


def _without_adapters(module: nn.Module) -> list[int]:
    """Sizes of the parameters, of the copies that PEFT trains of a module those of the one that runs."""
    idle = {id(parameter) for inner in module.modules() for copy in _idle(inner) for parameter in copy.parameters()}
    return [p.numel() for name, p in module.named_parameters() if "lora_" not in name and id(p) not in idle]


def _idle(module: nn.Module) -> list[nn.Module]:
    """The copies that a wrapper of PEFT (`modules_to_save`) holds and does not run."""
    if not isinstance(module, ModulesToSaveWrapper):
        return []
    copies = dict(module.modules_to_save.items())
    runs = module.original_module
    if not module.disable_adapters:
        runs = copies.get(module.active_adapters[0], runs)
    return [copy for copy in (module.original_module, *copies.values()) if copy is not runs]


def _has_bias(linear: nn.Module) -> int:
    return int(getattr(linear, "base_layer", linear).bias is not None)
