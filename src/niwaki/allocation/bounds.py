"""What a site costs at every width, and the widths it may have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Shape:
    """What a site may be: `units` of it in `groups` groups of as many each, and what they cost."""

    cost: float
    units: int
    groups: int


@dataclass(frozen=True, eq=False)
class Bounds:
    """Limits of one site.

    `costs` is `[units + 1]`: the cost of keeping 0, 1, ... units, never falling. At least `minimum` units are kept, and
    as many as `multiple` divides (or all). Where `remainder` is true one site may keep a few more, fewer than
    `multiple`, so that the budget is used up.

    Units lie in `groups` of equal size, one after another. All groups keep as many of them: `groups` divides
    `multiple`, and there is no `remainder` where there are several. With a `group_cost` whole groups may go, each of
    which saves that much beside the cost of its units.
    """

    costs: Tensor
    minimum: int
    multiple: int = 1
    remainder: bool = False
    groups: int = 1
    group_cost: float | None = None

    @classmethod
    def linear(
        cls, cost: float, units: int, minimum: int, multiple: int = 1, remainder: bool = False, groups: int = 1
    ) -> Bounds:
        """Bounds of a site whose `units` units cost the same each."""
        return cls(cost * torch.arange(units + 1, dtype=torch.double), minimum, multiple, remainder, groups)

    @property
    def units(self) -> int:
        """The most units that can be kept."""
        return len(self.costs) - 1

    @property
    def widths(self) -> list[int]:
        """The allowed numbers of units of all groups together, rising."""
        least = -(-self.minimum // self.multiple) * self.multiple
        return [*range(least, self.units, self.multiple), self.units]

    @property
    def shapes(self) -> list[Shape]:
        """All that is allowed, the cheapest first.

        Of several groups what the cheapest can be cut out of: a cut in several steps has to get there.
        """
        if self.group_cost is None or not self.units:
            return [Shape(self.cost(width), width, self.groups) for width in self.widths]
        found = []
        for groups in range(1, self.groups + 1):
            gone = (self.groups - groups) * self.group_cost
            for each in range(1, self.units // self.groups + 1):
                if groups * each >= min(self.minimum, self.units):
                    found.append(Shape(self.cost(groups * each) - gone, groups * each, groups))
        least = min(found, key=lambda shape: shape.cost)
        each = least.units // least.groups
        found = [shape for shape in found if shape.groups >= least.groups and shape.units // shape.groups >= each]
        return sorted([*([] if self.minimum else [Shape(0.0, 0, 0)]), *found], key=lambda shape: shape.cost)

    def cost(self, width: int) -> float:
        """Cost of keeping `width` units, all groups among them."""
        return float(self.costs[width])


def least_cost(bounds: dict[str, Bounds]) -> float:
    """Cost of the smallest model that the bounds allow."""
    return sum(bound.shapes[0].cost for bound in bounds.values())
