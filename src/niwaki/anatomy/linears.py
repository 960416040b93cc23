"""The linears of the blocks: what layer-adaptive pruning works on, in the order in which the data reach them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from niwaki.anatomy.projections import weight_of
from niwaki.anatomy.sites import Site, sites_of


@dataclass(frozen=True, eq=False)
class BlockLinear:
    """One linear of a block; `part` is its name in the family's row, output or down. `module` as in `Site`."""

    name: str
    layer: int
    part: str
    module: nn.Module
    site: Site

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)` of the weight."""
        rows, columns = weight_of(self.module).shape
        return int(rows), int(columns)

    @property
    def size(self) -> int:
        """Number of weights."""
        return weight_of(self.module).numel()

    @property
    def writes(self) -> bool:
        """Whether it writes into the residual stream; the others read it."""
        return self.module is self.site.output


def linears_of(model: nn.Module, *, emptied: bool = False) -> list[BlockLinear]:
    """Every linear of the blocks that has weights, layer by layer: query, key, value, output, (gate,) up, down.

    With `emptied` also the output projections of sites that lost all their units: their bias is still there.
    """
    found = []
    for site in sites_of(model):
        last = site.output_name.rpartition(".")[2]
        for part, module in (*((read.part, read.module) for read in site.reads), (last, site.output)):
            if weight_of(module).numel() or (emptied and module is site.output):
                found.append(BlockLinear(f"layer.{site.layer}.{part}", site.layer, part, module, site))
    return found
