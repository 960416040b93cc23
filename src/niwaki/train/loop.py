"""One training loop: AdamW on the parameters that require gradients, a tenth of warm-up, then linear to 0."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from niwaki.adapters import check_float32
from niwaki.data import Batches
from niwaki.errors import WorkError
from niwaki.masks import MaskedLinear
from niwaki.numerics.half import half_in_float32
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch, to_device
from niwaki.processes import add_up, count, number
from niwaki.progress import bar
from niwaki.train.best import Best
from niwaki.train.data import TrainingData

Loss = Callable[[nn.Module, Batch], Tensor]
"""Mean loss of a batch, with gradients."""
Attach = Callable[[torch.optim.Optimizer, int], Callable[[], object]]
"""Given the optimizer and the number of steps of a training, what is to be called after every step."""

MAX_GRADIENT_NORM = 1.0
CHECKS = 4
"""Times that the loss on held-out batches is measured once training has begun."""


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
    held_out: Sequence[Batch] = (),
    part: tuple[int, int] = (1, 1),
    progress: bool = False,
) -> float:
    """Train in place; returns the mean loss of the last epoch.

    Each epoch goes through `data` anew: the rows of `Batches` in other batches, batches in another order. Of `part`
    (number, of how many) only that part of all steps is made, with a schedule of its own; 0 where it has none. The
    model is trained in the mode (dropout on or off) it is in. With batches `held_out`, what is trained ends as it was
    when its loss on them was lowest: it is measured before the first step and after every quarter of the steps. What
    masks hide does not decay. The global random state is left as it was.

    Raises:
        RequestError: something to train is in less than float32, where small steps round to nothing (LoRA is in
            float32 whatever it adapts). WorkError: a loss that is not finite.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_float32(named)
    trained = list(named.values())
    optimizer = torch.optim.AdamW(_groups(model, trained), lr=learning_rate)
    within = steps_of(data, epochs, part)
    steps = len(within)
    if not steps:
        return 0.0
    after_step = attach(optimizer, steps) if attach else None
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    losses = deque[float](maxlen=len(data))
    optimizer.zero_grad()  # of whatever was done with the model before
    shown = bar(total=steps, phase="train", unit="steps", progress=progress)
    try:
        with half_in_float32(model), seeded(seed), shown:
            best = Best(trained, lambda: _loss_on(held_out, model, loss_of)) if held_out else None
            for step, batch in enumerate(islice(_epochs(data, seed), within.start, within.stop), start=1):
                losses.append(_backward(model, trained, batch, loss_of, step))
                torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
                optimizer.step()
                if after_step:
                    after_step()
                schedule.step()
                optimizer.zero_grad()
                shown.update()
                shown.set_postfix(loss=f"{losses[-1]:.3f}")
                if best and step in _checked(steps):
                    best.look()
            if best:
                best.put_back_()
    finally:
        optimizer.zero_grad()
    return sum(losses) / len(losses)


def steps_of(data: TrainingData, epochs: int, part: tuple[int, int] = (1, 1)) -> range:
    """The steps that part (number, of how many) of so many epochs over `data` makes; all parts together make all."""
    number, parts = part
    total = epochs * len(data)
    return range(total * (number - 1) // parts, total * number // parts)


def looks(held_out: Sequence[Batch], steps: int) -> int:
    """Batches that the loss on `held_out` is taken on, in all of so many steps."""
    return (1 + len(_checked(steps))) * len(held_out)


def _checked(steps: int) -> set[int]:
    """The steps after which the loss on held-out batches is measured."""
    return {steps * part // CHECKS for part in range(1, CHECKS + 1)} - {0}


def _groups(model: nn.Module, trained: list[nn.Parameter]) -> list[dict[str, Any]]:
    """What is trained, for the optimizer: masked weights apart, whose hidden values are to stay."""
    masked = {id(module.weight) for module in model.modules() if isinstance(module, MaskedLinear)}
    groups = [
        {"params": [parameter for parameter in trained if id(parameter) not in masked]},
        {"params": [parameter for parameter in trained if id(parameter) in masked], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _epochs(data: TrainingData, seed: int) -> Iterator[Batch]:
    """All of `data`, again and again, each time in an order that is drawn."""
    draw = random.Random(seed)
    while True:
        if isinstance(data, Batches):
            yield from data.shuffled(draw.getrandbits(32))
        else:
            yield from draw.sample(data, len(data))


@torch.no_grad()
def _loss_on(batches: Sequence[Batch], model: nn.Module, loss_of: Loss) -> float:
    """The mean loss over `batches`, without gradients."""
    device = next(model.parameters()).device
    return sum(float(loss_of(model, to_device(batch, device))) for batch in batches) / len(batches)


def _backward(model: nn.Module, trained: Sequence[nn.Parameter], batch: Batch, loss_of: Loss, step: int) -> float:
    """The loss of one batch, its gradients added to those of the parameters.

    Of several processes each runs its share of the rows, and all get the mean of the gradients, every row counted once
    (a loss that is no mean over rows, such as one relative to the size of what is wanted, is so within each share).

    Raises:
        WorkError: it is not finite.
    """
    device = next(model.parameters()).device
    own, weight = _own_rows(batch)
    loss = weight * loss_of(model, to_device(own, device))
    told = float(add_up(loss.detach())) / count()
    if not math.isfinite(told):
        raise WorkError(f"training: the loss is not finite at step {step}; lower the learning rate")
    loss.backward()
    if count() > 1:
        for parameter in trained:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = add_up(gradient) / count()
    return told


def _own_rows(batch: Batch) -> tuple[Batch, float]:
    """The rows of a batch that this process runs, and what their mean weighs: 1 where all have as many.

    A process that is left without any runs the first row, for nothing.
    """
    if count() == 1:
        return batch, 1.0
    rows = len(batch["input_ids"])
    own = {name: value[number() :: count()] for name, value in batch.items()}
    if number() >= rows:
        return {name: value[:1] for name, value in batch.items()}, 0.0
    return own, count() * len(own["input_ids"]) / rows
