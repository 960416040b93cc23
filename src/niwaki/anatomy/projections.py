"""A projection: one linear with the rows that each unit owns in it, and those that belong to all of them.

That one table, `rows` `[units, rows of a unit]`, says all there is to say of a projection into the units: equal widths
(BERT), query heads in groups (Llama), runs fused one after another (Phi-3) or unit by unit (GPT-NeoX). Units that go
take their rows along, and the rest keep their order. Weights are seen as `[out, in]` whatever their layout is:
GPT-2's `Conv1D` stores `[in, out]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from niwaki.anatomy.families import Reads
from niwaki.errors import RequestError
from niwaki.numerics.layout import is_transposed, to_out_in


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear into the units of a site: its name in the family's row, its path in the layer, the module, its runs.

    `sizes` are the rows that a unit has in each run. A run of size 0 has `shared` rows that no unit owns: those of the
    `groups` in which the units lie, one group after another.
    """

    part: str
    path: str
    module: nn.Module
    units: int
    sizes: tuple[int, ...]
    shared: int
    groups: int
    by_unit: bool

    @cached_property
    def rows(self) -> Tensor:
        """`[units, rows of a unit]`, the rows that each owns."""
        if self.by_unit:
            return torch.arange(self.units * sum(self.sizes)).reshape(self.units, sum(self.sizes))
        runs = [start + torch.arange(self.units * size).reshape(self.units, size) for start, size in self._runs]
        return torch.cat(runs, 1)

    @cached_property
    def common(self) -> Tensor:
        """`[rows]`, those that no unit owns: they stay as long as a unit of their group does."""
        runs = [start + torch.arange(self.shared) for start, size in self._runs if not size]
        return torch.cat([torch.arange(0), *runs])

    @property
    def _runs(self) -> list[tuple[int, int]]:
        """Where each run starts, and the rows of a unit in it."""
        lengths = [self.units * size if size else self.shared for size in self.sizes]
        return list(zip(accumulate(lengths[:-1], initial=0), self.sizes, strict=True))

    def rows_of(self, units: Tensor) -> Tensor:
        """The rows that these units need, in the order in which they lie in the weight."""
        groups = (units // max(1, self.units // self.groups)).unique()
        common = self.common.reshape(self.sizes.count(0), self.groups, self.shared // self.groups)[:, groups]
        return torch.cat([self.rows[units].flatten(), common.flatten()]).sort().values


def projection(
    reads: Reads, layer: nn.Module, units: int, widths: dict[str, int], name: str, common: int = 0, groups: int = 1
) -> Projection:
    """The projection that `reads` describes; `widths` is the number of rows that a unit has in a run of each letter.

    A run of width 0 has `common` rows that no unit owns, but one of the `groups`.

    Raises:
        RequestError: rows that are not those of the units.
    """
    module = layer.get_submodule(reads.path)
    sizes = tuple(widths[letter] for letter in reads.order)
    wanted, found = sum(units * size if size else common for size in sizes), weight_of(module).shape[0]
    if found != wanted:
        raise RequestError(f"{name}.{reads.path} must have {wanted} rows for {units} units, got {found}")
    return Projection(reads.part, reads.path, module, units, sizes, common, groups, reads.by_unit)


def columns_of(units: Tensor, width: int) -> Tensor:
    """Columns of the output projection that `units` of this width own; in order."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def weight_of(linear: nn.Module) -> Tensor:
    """The stored weight of a linear or of the base of a LoRA layer (without the adapter), seen as `[out, in]`.

    What is written into it in place is written into the parameter.
    """
    return to_out_in(linear, cast(nn.Parameter, getattr(linear, "base_layer", linear).weight))


def check_linear(linear: nn.Module, name: str) -> None:
    """Refuse what is no linear with float weights.

    Raises:
        RequestError: naming it.
    """
    if not isinstance(getattr(linear, "base_layer", linear), nn.Linear | Conv1D):
        raise RequestError(f"{name} must be a linear layer with float weights, got {type(linear).__name__}")


def set_features_(linear: Any) -> None:
    """Write the shape of the weight of a plain linear into the integers that it keeps of it."""
    rows, columns = weight_of(linear).shape
    if is_transposed(linear):
        linear.nf, linear.nx = rows, columns
    else:
        linear.out_features, linear.in_features = rows, columns
