"""One training loop: AdamW on what requires gradients, a rate that warms up and falls, the best on held-out rows.

It is plain PyTorch; why not Accelerate's `Accelerator` is said in docs/architecture.md.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from niwaki.adapters import check_float32
from niwaki.anatomy import layers_run_again
from niwaki.config import Training
from niwaki.data import Batches
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear
from niwaki.numerics.decimals import whole_part
from niwaki.numerics.half import half_in_float32
from niwaki.numerics.layout import to_out_in
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.progress import Bar, bar, say
from niwaki.train.best import Best
from niwaki.train.course import Beside, Course
from niwaki.train.data import TrainingData
from niwaki.train.kept import Keeper
from niwaki.train.step import Loss, Over, Stepper, Whole, alone, rows_in

Attach = Callable[[torch.optim.Optimizer, int, torch.amp.GradScaler | None], Beside]
"""Given the optimizer, the number of steps of a training and the scaler of its loss, what goes along with it."""

QUARTERS, TENTHS = 4, 10
DEFAULTS = Training()


@dataclass(frozen=True)
class Trained:
    """What was done: the mean `loss` of the last epoch, batches trained on, and held-out batches that were measured."""

    loss: float = 0.0
    batches: int = 0
    looked: int = 0


def task_loss(model: nn.Module, batch: Batch, _whole: Whole = alone) -> Tensor:
    """The model's own loss on the labels of the batch."""
    return model(**batch).loss


def train_(
    model: nn.Module,
    data: TrainingData,
    loss_of: Loss,
    options: Training = DEFAULTS,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    over: Over = rows_in,
    attach: Attach | None = None,
    held_out: Sequence[Batch] = (),
    part: tuple[int, int] = (1, 1),
    progress: bool = False,
) -> Trained:
    """Train in place.

    Each epoch goes through `data` anew: the rows of `Batches` in other batches, batches in another order. Of `part`
    (number, of how many) only that part of all steps is made, with a schedule of its own; nothing where it has none.
    The model is trained in the mode (dropout on or off) it is in. With batches `held_out`, what is trained ends as it
    was when its loss on them was lowest: it is measured before the first step and after every quarter of the steps, or
    every tenth with early stopping. What masks hide does not decay. The global random state is left as it was. Where
    trainings are kept (see `niwaki.train.kept`) they go on from there.

    `loss_of` gives the mean of as many losses as `over` says of a batch; one of none teaches nothing.

    Raises:
        RequestError: something to train is in less than float32, where small steps round to nothing; nothing that is
            held out to end early by has losses. WorkError: losses that are not finite, gradients too large for float16.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_float32(named)
    held_out, within = _with_losses(held_out, over, options), steps_of(data, epochs, options, part)
    if not within:
        return Trained()
    asked = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed, "part": part}
    keeper = Keeper(model, _values(options) | asked, quiet=not progress)
    optimizer = torch.optim.AdamW(_groups(model, named), lr=learning_rate, weight_decay=options.weight_decay)
    _decay_visible_(optimizer, model, options.weight_decay)
    stepper = Stepper(model, list(named.values()), optimizer, loss_of, over, options)
    course = Course(
        trained=named,
        optimizer=optimizer,
        schedule=_schedule(optimizer, len(within), options),
        scaler=stepper.scaler,
        best=Best(stepper.trained, lambda: stepper.loss_on(held_out)) if held_out else None,
        beside=attach(optimizer, len(within), stepper.scaler) if attach else None,
        losses=deque(maxlen=len(steps_of(data, 1, options))),
    )
    again = layers_run_again(model) if options.gradient_checkpointing else nullcontext()
    optimizer.zero_grad()  # of whatever was done with the model before
    try:
        with half_in_float32(model), seeded(seed), again:
            keeper.restore_(course)
            left = islice(_batches(data, seed, options), within.start + course.done, within.stop)
            with bar(left, phase="train", unit="steps", total=len(within) - course.done, progress=progress) as shown:
                _go_on_(course, stepper, shown, len(within), keeper)
    finally:
        optimizer.zero_grad()
    return Trained(sum(course.losses) / len(course.losses), course.batches, course.looks * len(held_out))


def _with_losses(held_out: Sequence[Batch], over: Over, options: Training) -> list[Batch]:
    """Those of the batches that measure something."""
    found = [batch for batch in held_out if over(batch)]
    if held_out and not found and options.early_stopping:
        rule = "early_stopping must be 0 where the rows that are held out have no labels"
        raise RequestError(f"{rule}, got {options.early_stopping}")
    return found


def _go_on_(course: Course, stepper: Stepper, steps: Bar[list[Batch]], total: int, keeper: Keeper) -> None:
    """Make the `steps` that are left of `total`, until the last one or the one that early stopping ends with."""
    best, patience = course.best, stepper.options.early_stopping
    measured, kept = _parts(total, TENTHS if patience else QUARTERS), _parts(total, TENTHS)
    if not course.done:
        course.look()
    for batches in () if course.ended else steps:
        loss, made = stepper.step(batches, course.done + 1)
        course.note(loss, len(batches), made)
        steps.set_postfix(loss=f"{loss:.3f}")
        if course.done in measured:
            course.look()
        course.ended = course.done == total or (best is not None and 0 < patience <= best.since)
        if course.done in kept:
            keeper.save(course)
        if course.ended:
            break
    if course.done < total:
        say(f"training: ended early, after step {course.done} of {total}", quiet=bool(steps.disable))
    if best is not None:
        best.put_back_()


def steps_of(data: TrainingData, epochs: int, options: Training, part: tuple[int, int] = (1, 1)) -> range:
    """The steps that part (number, of how many) of so many epochs over `data` makes; all parts together make all."""
    number, parts = part
    total = epochs * -(-len(data) // options.gradient_accumulation)
    return range(total * (number - 1) // parts, total * number // parts)


def _parts(steps: int, count: int) -> set[int]:
    """The steps after which each of `count` parts of all `steps` is done."""
    return {steps * part // count for part in range(1, count + 1)} - {0}


def _values(options: Training) -> dict[str, Any]:
    """The options of a training alone, of a stage that has others too."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(Training)}


def _schedule(optimizer: torch.optim.Optimizer, steps: int, options: Training) -> LRScheduler:
    """The learning rate of each step: it rises from 0, and then goes as asked."""
    kind = options.learning_rate_schedule
    name = "constant_with_warmup" if kind == "constant" else kind
    return get_scheduler(name, optimizer, whole_part(options.learning_rate_warmup, steps), steps)


def _groups(model: nn.Module, named: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """What is trained, for the optimizer: masked weights apart, which do not all decay."""
    masked = {id(module.weight) for module in _masked(model)}
    groups = [
        {"params": [parameter for parameter in named.values() if id(parameter) not in masked]},
        {"params": [parameter for parameter in named.values() if id(parameter) in masked], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _decay_visible_(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """Have every step of `optimizer` decay what masks leave of the weights that are trained, as AdamW does the others.

    What they hide keeps its value, for when it returns.
    """

    @torch.no_grad()
    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rate = optimizer.param_groups[0]["lr"]
        for module in _masked(model):
            if module.weight.requires_grad:
                module.weight.mul_(to_out_in(module, 1 - rate * decay * module.mask.to(module.weight)))

    if decay:
        optimizer.register_step_pre_hook(before_step)


def _masked(model: nn.Module) -> list[MaskedLinear]:
    return [module for module in model.modules() if isinstance(module, MaskedLinear)]


def _batches(data: TrainingData, seed: int, options: Training) -> Iterator[list[Batch]]:
    """The batches of each step: all of `data`, again and again, each time in an order that is drawn."""
    draw = random.Random(seed)
    while True:
        rows = isinstance(data, Batches)
        epoch = data.shuffled(draw.getrandbits(32)) if rows else iter(draw.sample(data, len(data)))
        while batches := list(islice(epoch, options.gradient_accumulation)):
            yield batches
