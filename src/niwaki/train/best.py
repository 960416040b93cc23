"""The best of a training: what is trained, as it was when its loss on held-out batches was lowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


class Best:
    """The values of `trained` at the lowest loss that was measured."""

    def __init__(self, trained: Sequence[nn.Parameter], measure: Callable[[], float]) -> None:
        self.trained, self.measure = trained, measure
        self.lowest, self.values = float("inf"), list[torch.Tensor]()
        self.looks = 0
        """Measurements that were made."""
        self.since = 0
        """Of these, how many after the lowest."""

    def look(self) -> None:
        """Measure the loss; keep a copy of the values where none was as low. A loss that is not finite never is."""
        loss = self.measure()
        self.looks, self.since = self.looks + 1, self.since + 1
        if loss < self.lowest:
            self.lowest, self.since = loss, 0
            self.values = [parameter.detach().clone() for parameter in self.trained]

    def put_back_(self) -> None:
        """Give `trained` the best values; where no loss was finite they stay as they are."""
        for parameter, value in zip(self.trained, self.values or self.trained, strict=True):
            parameter.data.copy_(value)
