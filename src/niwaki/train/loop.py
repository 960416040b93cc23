"""One training loop: AdamW on the parameters that require gradients, a tenth of warm-up, then linear to 0."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from niwaki.errors import RequestError, WorkError
from niwaki.numerics.half import half_in_float32
from niwaki.observe.units import Batch

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
    batches: Sequence[Batch],
    loss_of: Loss,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    attach: Attach | None = None,
    progress: bool = False,
) -> float:
    """Train in place, the batches in a new order each epoch; returns the mean loss of the last epoch.

    The model is trained in the mode (dropout on or off) it is in. The global random state is left as it was.

    Raises:
        RequestError: something to train is in less than float32, where small steps round to nothing (LoRA is in
            float32 whatever it adapts). WorkError: a loss that is not finite.
    """
    device = next(model.parameters()).device
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise RequestError(f"dtype must be float32 to train {name}, got {kind}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    steps = epochs * len(batches)
    after_step = attach(optimizer, steps) if attach else None
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    order, mean = list(range(len(batches))), 0.0
    draw = random.Random(seed)
    with (
        half_in_float32(model),
        torch.random.fork_rng(),
        tqdm(total=steps, desc="train", unit="step", disable=not progress) as bar,
    ):
        torch.manual_seed(seed)
        for _ in range(epochs):
            draw.shuffle(order)
            losses = []
            for index in order:
                batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batches[index].items()}
                loss = loss_of(model, batch)
                if not bool(torch.isfinite(loss)):
                    raise WorkError(f"training: the loss is not finite at step {bar.n + 1}; lower the learning rate")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
                optimizer.step()
                if after_step:
                    after_step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
            mean = sum(losses) / len(losses)
    return mean
