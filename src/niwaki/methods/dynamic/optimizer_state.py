"""What an optimizer remembers of weights that go and come, where the weights themselves are trained (not under LoRA).

Moments of a dropped weight are cleared, so that it does not move while it is zero. A weight that grew has its own age
for bias correction: Adam and AdamW divide the moments by 1 - b^t, t the age of the parameter, which for a grown weight
with fresh moments makes a first step of (1 - b1) / sqrt(1 - b2) = 3.2 learning rates; here t is the age of the weight.
SGD with dampening d takes the first gradient whole into the momentum; a grown weight's too.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer


def bare(optimizer: Any) -> Optimizer:
    """The PyTorch optimizer inside Accelerate's wrapper, or the optimizer itself."""
    return cast(Optimizer, getattr(optimizer, "optimizer", optimizer))


def gathers(optimizer: Any) -> bool:
    """Whether Accelerate's wrapper made no step because more micro-batches of the batch are to come."""
    gradients = getattr(optimizer, "gradient_state", None)
    return gradients is not None and not gradients.sync_gradients


def statement(optimizer: Optimizer) -> str:
    """One line: what is done for this optimizer."""
    name = type(optimizer).__name__
    cleared = f"{name}: moments of dropped weights are cleared"
    if isinstance(optimizer, Adam | SGD):
        return f"{cleared}, grown weights have their own age"
    return f"{cleared} where they have the weight's shape; grown weights have the age of their parameter"


def clear_(optimizer: Optimizer, parameter: nn.Parameter, places: Tensor) -> None:
    """Zero every state of `parameter` that has its shape, at `places` (a mask)."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(places, 0)


class Ages:
    """The steps since each weight of one parameter grew; weights that were there from the start are as old as it is.

    `ages` is an int32 tensor of the parameter's shape: -1 where there is nothing to correct.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.ages = torch.full(parameter.shape, -1, dtype=torch.int32, device=parameter.device)
        self.places = self.ages.new_empty(0, dtype=torch.long)

    def change(self, dropped: Tensor, grown: Tensor) -> None:
        """Forget the dropped weights; the grown ones are 0 steps old."""
        self.ages.masked_fill_(dropped, -1)
        self.ages.masked_fill_(grown, 0)
        self.restore(self.ages)

    def restore(self, ages: Tensor) -> None:
        """Take over saved ages."""
        self.ages.copy_(ages)
        self.places = (self.ages.flatten() >= 0).nonzero()[:, 0]

    @torch.no_grad()
    def correct_(self, optimizer: Optimizer) -> None:
        """After an optimizer step: undo what it did to the grown weights and do what their own age asks."""
        if not len(self.places) or self.parameter not in optimizer.state:
            return
        flat = self.ages.view(-1)
        flat[self.places] += 1
        group = next(g for g in optimizer.param_groups if any(p is self.parameter for p in g["params"]))
        state = optimizer.state[self.parameter]
        moved: Tensor | None = None
        if isinstance(optimizer, Adam):
            moved = self._adam(group, state, flat[self.places].double())
        elif isinstance(optimizer, SGD) and group["dampening"] and state.get("momentum_buffer") is not None:
            moved = self._sgd(group, state, flat[self.places])
        if moved is not None:
            values = self.parameter.data.view(-1)
            values[self.places] += moved.to(values.dtype)

    def _adam(self, group: dict[str, Any], state: dict[str, Any], age: Tensor) -> Tensor:
        first = state["exp_avg"].view(-1)[self.places].double()
        second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].view(-1)[self.places].double()
        beta1, beta2 = (float(beta) for beta in group["betas"])

        def step(age: Tensor) -> Tensor:
            size = (second / (1 - beta2**age)).sqrt() + group["eps"]
            return float(group["lr"]) * first / (1 - beta1**age) / size

        return step(torch.as_tensor(state["step"]).double().to(age.device)) - step(age)

    def _sgd(self, group: dict[str, Any], state: dict[str, Any], age: Tensor) -> Tensor:
        """On the first step the buffer is the gradient itself, not 1 - dampening of it."""
        buffer = state["momentum_buffer"].view(-1)
        had = buffer[self.places]
        whole = torch.where(age == 1, had / (1 - group["dampening"]), had)
        buffer[self.places] = whole
        factor = group["momentum"] if group["nesterov"] else 1.0
        return float(group["lr"]) * factor * (had - whole)  # with `maximize` the buffer is of the opposite gradient
