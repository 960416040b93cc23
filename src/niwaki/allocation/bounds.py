"""What a site costs at every width, and the widths it may have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bounds:
    """Limits of one site.

    `costs` is `[units + 1]`: the cost of keeping 0, 1, ... units, never falling. At least `minimum` units are kept, and
    as many as `multiple` divides (or all). Where `remainder` is true one site may keep a few more, fewer than
    `multiple`, so that the budget is used up. Units lie in `groups` of equal size, one after another, each of which
    keeps as many as the others: `groups` divides `multiple`.
    """

    costs: Tensor
    minimum: int
    multiple: int = 1
    remainder: bool = False
    groups: int = 1

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
        """The allowed widths, rising."""
        least = -(-self.minimum // self.multiple) * self.multiple
        return [*range(least, self.units, self.multiple), self.units]

    def cost(self, width: int) -> float:
        """Cost of keeping `width` units."""
        return float(self.costs[width])


def least_cost(bounds: dict[str, Bounds]) -> float:
    """Cost of the smallest model that the bounds allow."""
    return sum(bound.cost(bound.widths[0]) for bound in bounds.values())
