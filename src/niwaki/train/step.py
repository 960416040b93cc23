"""One step of a training: the gradient of all its batches, and of all processes, is clipped, and the optimizer steps.

It is the gradient of the mean over the whole: with `n_i` losses in batch i, batches weigh `n_i / sum(n)`, and so do the
shares of the processes, which know what the whole of a batch sums up to. So a step of several batches, or of several
processes, is that of one large batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from niwaki.anatomy import evaluation_mode
from niwaki.config import Training
from niwaki.data import some_rows
from niwaki.errors import WorkError
from niwaki.observe import Batch, to_device
from niwaki.processes import add_up, add_up_each, count, number
from niwaki.train.precision import autocast, scaler_for

Whole = Callable[[Tensor], Tensor]
"""Given what the rows of a batch that a process has sum up to: what all rows of that batch do."""
Loss = Callable[[nn.Module, Batch, Whole], Tensor]
"""Mean loss of a batch, or of the rows of it that a process has, with gradients."""
Over = Callable[[Batch], int]
"""Of how many losses that is the mean."""


def alone(own: Tensor) -> Tensor:
    """`Whole` of rows that are all there are."""
    return own


def rows_in(batch: Batch) -> int:
    """Rows of a batch, each of which has one loss."""
    return len(batch["input_ids"])


class Stepper:
    """Makes steps of `optimizer` on what is `trained` of `model`; `scaler` scales the loss where that is asked."""

    def __init__(
        self,
        model: nn.Module,
        trained: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        loss_of: Loss,
        over: Over,
        options: Training,
    ) -> None:
        self.model, self.trained, self.optimizer = model, trained, optimizer
        self.loss_of, self.over, self.options = loss_of, over, options
        self.scaler = scaler_for(model, options)

    def step(self, batches: Sequence[Batch], step: int) -> tuple[float, bool]:
        """The mean loss of `batches`, and whether the optimizer stepped.

        Gradients too large for float16 are skipped, and batches that have no losses: no labels, or padding alone.

        Raises:
            WorkError: a loss that is not finite; gradients that are not, however small the loss is made.
        """
        losses = sum(self.over(batch) for batch in batches)
        if not losses:
            return 0.0, False
        told = sum(self._backward(batch, self.over(batch) / losses, step) for batch in batches)
        if count() > 1:
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
            for parameter, total in zip(self.trained, add_up_each(own), strict=True):
                parameter.grad = total / count()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.options.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self.options.max_gradient_norm)
        made = self._optimizer_step(step)
        self.optimizer.zero_grad()
        return told, made

    @torch.no_grad()
    def loss_on(self, batches: Sequence[Batch]) -> float:
        """The mean loss over all predictions of `batches`, without gradients and dropout."""
        with evaluation_mode(self.model):
            weights = [(batch, self.over(batch)) for batch in batches]
            told = sum(weight * _of_all(self._own_loss(batch).double()) for batch, weight in weights if weight)
        return told / max(1, sum(weight for _, weight in weights))

    def _optimizer_step(self, step: int) -> bool:
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        scale = self.scaler.get_scale()
        if scale < 1.0:
            rule = "mixed_precision must be bf16 or no for this model"
            raise WorkError(f"training: {rule}: its gradients are too large for float16 at step {step}")
        return scale >= before

    def _backward(self, batch: Batch, weight: float, step: int) -> float:
        """The loss of a batch with a `weight`, its gradients added to those of the parameters."""
        if not weight:  # the mean of no losses is not a number
            return 0.0
        loss = weight * self._own_loss(batch)
        told = _of_all(loss.detach())
        if not math.isfinite(told):
            raise WorkError(f"training: the loss is not finite at step {step}; lower the learning rate")
        if loss.requires_grad:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return told

    def _own_loss(self, batch: Batch) -> Tensor:
        """What this process adds to the loss of a batch, which is the mean of what all of them add.

        Each runs its share of the rows, every row counted once.
        """
        own, losses = self._own_rows(batch)
        device = next(self.model.parameters()).device

        def whole(value: Tensor) -> Tensor:
            return add_up(value if losses else torch.zeros_like(value))

        with autocast(self.model, self.options):
            loss = self.loss_of(self.model, to_device(own, device), whole)
        if not losses:
            return torch.zeros((), device=device)
        return count() * losses / self.over(batch) * loss

    def _own_rows(self, batch: Batch) -> tuple[Batch, int]:
        """The rows of a batch that this process runs, and how many losses they stand for.

        A process that is left without any runs the first row, for nothing.
        """
        if count() == 1:
            return batch, self.over(batch)
        if number() >= rows_in(batch):
            return some_rows(batch, slice(1)), 0
        own = some_rows(batch, slice(number(), None, count()))
        return own, self.over(own)


def _of_all(own: Tensor) -> float:
    """The mean of what all processes have, as a number."""
    return float(add_up(own)) / count()
