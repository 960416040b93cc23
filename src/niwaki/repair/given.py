"""Rows of a batch before a layer, and what the layer is to give for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from niwaki.data import some_rows


@dataclass(frozen=True, eq=False)
class Given:
    """Rows of a batch: `inputs` of the model, their `hidden` states before the layer and those `wanted` after it.

    `by_token` `[sequences, length]` is what each token counts, None where all count alike.
    """

    inputs: dict[str, Tensor]
    hidden: Tensor
    wanted: Tensor
    by_token: Tensor | None

    def rows(self, which: slice) -> Given:
        """Some of the rows; a row may be several sequences."""
        rows = len(self.inputs["input_ids"])

        def own(states: Tensor) -> Tensor:
            return states.unflatten(0, (rows, -1))[which].flatten(0, 1)

        by_token = None if self.by_token is None else own(self.by_token)
        return Given(some_rows(self.inputs, which), own(self.hidden), own(self.wanted), by_token)
