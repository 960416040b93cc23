"""The signed gradient of the effective weights of one optimizer step, summed over its micro-batches and processes.

The backward pass of a masked linear already makes `dL/dW_eff = dy^T x`, zeros included, on its way to the factors of
LoRA; a hook on the effective weight reads it, so that a captured step costs a sum and any other step nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from niwaki.errors import WorkError
from niwaki.masks import MaskedLinear
from niwaki.processes import count


class Capture:
    """Hooks on masked linears, by name; `scaler` is the GradScaler whose scale the gradients carry, if any."""

    def __init__(self, linears: dict[str, MaskedLinear], scaler: Any = None) -> None:
        self.linears = linears
        self.scaler = scaler
        self.sums: dict[str, Tensor] = {}
        self.scale = 1.0
        self.armed = False

    def arm(self, armed: bool) -> None:
        """Capture from now on, or no longer; what was captured is forgotten."""
        self.armed = armed
        self.sums.clear()
        for name, linear in self.linears.items():
            if armed:
                linear.watch = self._adder(name)
            else:
                vars(linear).pop("watch", None)

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            if self.scaler is not None:
                self.scale = float(self.scaler.get_scale())
            found = gradient.detach().float() if gradient.dtype.itemsize < 4 else gradient.detach()
            self.sums[name] = self.sums[name] + found if name in self.sums else found

        return add

    def take(self) -> dict[str, Tensor]:
        """The gradients `[out, in]` of the whole batch, by name: the mean over processes, without the scaler's scale.

        That of a linear which no backward pass went through is zero.

        Raises:
            WorkError: a gradient that is not finite, naming the linear.
        """
        found = {}
        for name in self.linears:
            gradient = self.sums.pop(name, None)
            if gradient is None:
                gradient = torch.zeros_like(self.linears[name].weight)
            if self.scale != 1.0:
                gradient = gradient / self.scale
            if count() > 1:
                gradient = gradient.contiguous().clone()
                dist.all_reduce(gradient)
                gradient /= count()
            if not bool(gradient.sum().isfinite()):  # cheaper than to look at each
                raise WorkError(f"{name}: the gradient of a weight is not finite; lower the learning rate")
            found[name] = gradient
        return found
