"""One training loop: AdamW on the parameters that require gradients, a tenth of warm-up, then linear to 0."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from niwaki.data import Batches
from niwaki.errors import RequestError, WorkError
from niwaki.numerics.half import half_in_float32
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.progress import bar
from niwaki.train.data import TrainingData

Loss = Callable[[nn.Module, Batch], Tensor]
"""Mean loss of a batch, with gradients."""
Attach = Callable[[torch.optim.Optimizer, int], Callable[[], object]]
"""Given the optimizer and the number of steps of a training, what is to be called after every step."""

MAX_GRADIENT_NORM = 1.0


def task_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss on the labels of the batch."""
    return model(**batch).loss


def train_(
    model: nn.Module,
    data: TrainingData,
    loss_of: Loss,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    attach: Attach | None = None,
    progress: bool = False,
) -> float:
    """Train in place; returns the mean loss of the last epoch.

    Each epoch goes through `data` anew: the rows of `Batches` in other batches, batches in another order. The model is
    trained in the mode (dropout on or off) it is in. The global random state is left as it was.

    Raises:
        RequestError: something to train is in less than float32, where small steps round to nothing (LoRA is in
            float32 whatever it adapts). WorkError: a loss that is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise RequestError(f"dtype must be float32 to train {name}, got {kind}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    steps = epochs * len(data)
    after_step = attach(optimizer, steps) if attach else None
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    draw, mean, step = random.Random(seed), 0.0, 0
    optimizer.zero_grad()  # of whatever was done with the model before
    shown = bar(total=steps, phase="train", unit="steps", progress=progress)
    try:
        with half_in_float32(model), seeded(seed), shown:
            for _ in range(epochs):
                losses = []
                for batch in _epoch(data, draw):
                    step += 1
                    loss = _backward(model, batch, loss_of, step)
                    torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
                    optimizer.step()
                    if after_step:
                        after_step()
                    schedule.step()
                    optimizer.zero_grad()
                    losses.append(loss)
                    shown.update()
                    shown.set_postfix(loss=f"{loss:.3f}")
                mean = sum(losses) / len(losses)
    finally:
        optimizer.zero_grad()
    return mean


def _epoch(data: TrainingData, draw: random.Random) -> Iterator[Batch]:
    """All of `data` once, in an order that is drawn."""
    if isinstance(data, Batches):
        yield from data.shuffled(draw.getrandbits(32))
        return
    yield from draw.sample(data, len(data))


def _backward(model: nn.Module, batch: Batch, loss_of: Loss, step: int) -> float:
    """The loss of one batch, its gradients added to those of the parameters.

    Raises:
        WorkError: it is not finite.
    """
    device = next(model.parameters()).device
    loss = loss_of(model, {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
    if not bool(torch.isfinite(loss)):
        raise WorkError(f"training: the loss is not finite at step {step}; lower the learning rate")
    loss.backward()
    return float(loss.detach())
