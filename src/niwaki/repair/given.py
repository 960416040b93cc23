"""Rows of a batch before a layer, and what the layer is to give for them: what processes hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from niwaki.processes import Parts

_STATES = ("hidden", "wanted", "by_token")


@dataclass(frozen=True, eq=False)
class Given:
    """Rows of a batch: `inputs` of the model, their `hidden` states before the layer and those `wanted` after it.

    `by_token` `[sequences, length]` is what each token counts, None where all count alike.
    """

    inputs: dict[str, Tensor]
    hidden: Tensor
    wanted: Tensor
    by_token: Tensor | None

    def parts(self) -> Parts:
        """As one process sends it to the others."""
        return {f"inputs/{k}": v for k, v in self.inputs.items()} | {name: getattr(self, name) for name in _STATES}

    @classmethod
    def of(cls, parts: Parts) -> Given:
        """What `parts` were made of."""
        inputs = {key.removeprefix("inputs/"): value for key, value in parts.items() if key not in _STATES}
        return cls(inputs, *(parts[name] for name in _STATES))

    def rows(self, which: slice) -> Given | None:
        """Some of the rows, None where these are none; a row may be several sequences."""
        # Models that choose among texts take the rows for one block of memory (`view`), which every second row is not.
        inputs = {name: value[which].contiguous() for name, value in self.inputs.items()}
        rows = len(self.inputs["input_ids"])
        if not len(inputs["input_ids"]):
            return None

        def own(states: Tensor) -> Tensor:
            return states.unflatten(0, (rows, -1))[which].flatten(0, 1)

        by_token = None if self.by_token is None else own(self.by_token)
        return Given(inputs, own(self.hidden), own(self.wanted), by_token)
