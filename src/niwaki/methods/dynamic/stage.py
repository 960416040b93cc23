"""Dynamic sparsity as a stage of its own: LoRA is trained while the masks move, from the labels or the dense model."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from niwaki.adapters import check_model, check_trainable, merge_
from niwaki.anatomy import accepts_of, evaluation_mode, note_problem_, supported_task
from niwaki.config import DynamicSparsityTraining
from niwaki.data import checked_batches
from niwaki.masks import NByM
from niwaki.methods.dynamic.callback import schedule_table
from niwaki.methods.dynamic.controller import Controller
from niwaki.methods.dynamic.history import Update
from niwaki.methods.dynamic.saved import restore_controller_, save_controller
from niwaki.methods.dynamic.schedules import Schedule
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch, Passes
from niwaki.progress import show
from niwaki.results import SiteResult, StageResult
from niwaki.train.data import TrainingData, check_training, hold_out, training_data
from niwaki.train.loop import Trained, task_loss, train_
from niwaki.train.prior import begin_with_prior_
from niwaki.train.recover import distillation_loss, predictions_in
from niwaki.train.step import Whole
from niwaki.train.undo import adapters_in_training_

COURSE = 200
"""Updates that `result.json` tells of."""


def prune_dynamically_(
    model: nn.Module,
    config: DynamicSparsityTraining,
    data: Iterable[Batch],
    *,
    training: Iterable[Batch] | None = None,
    progress: bool = False,
) -> StageResult:
    """Train `model` in place under moving masks, which it holds from then on; see `train_dynamic`.

    It ends in evaluation mode, as after `niwaki.finetune`.

    It is trained on `training`, on `data` where there are none; allocations look at `data`. The adapters of a
    `PeftModel` stay attached; the LoRA that a plain model is trained by is merged at the end.
    """
    check_model(model)
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    calibration = training_data(model, data, labels=False)
    tuned, result, _, _ = train_dynamic(
        model, config, calibration if training is None else training, calibration=calibration, progress=progress
    )
    if tuned is not model:
        merge_(tuned)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required[name])
    return result


def train_dynamic(
    model: nn.Module,
    config: DynamicSparsityTraining,
    data: Iterable[Batch],
    *,
    calibration: Iterable[Batch] = (),
    progress: bool = False,
) -> tuple[PeftModel, StageResult, Schedule, list[Update]]:
    """Train a model's adapters (new ones on a plain model) under moving masks.

    Allocations that need it look at the batches of `calibration`. Returns the `PeftModel`, what was done, the schedule,
    and what every update did. The importance of a linear is its share of all weights that grew. A training that fails
    or is interrupted leaves `model` as it came in.

    Raises:
        RequestError: before any training: the model cannot be trained, `data` are empty or lack labels that are asked
            for; see also `niwaki.methods.dynamic.Controller`.
        WorkError: a loss that is not finite.
    """
    started = time.perf_counter()
    check_model(model)
    check_trainable(model, config.lora_rank)
    with seeded(config.seed):
        batches = training_data(model, data, labels=config.teacher == "none")
        check_training(model, config, batches)
        calibration = checked_batches(accepts_of(model), calibration, "calibration", empty=True)
        dense = merge_(copy.deepcopy(model)).eval() if config.teacher == "dense" else None
        with adapters_in_training_(model, config.lora_rank, seed=config.seed) as tuned:
            tuned.train()
            if dense is None:
                note_problem_(tuned)
                begin_with_prior_(tuned, batches)
            controller, done = _train_under_moving_masks_(tuned, dense, batches, config, calibration, progress)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it stands in the result
                controller.finish()
            tuned.eval()
    # What looked at the calibration data, as passes over what was trained on.
    looked = len(calibration) / len(batches)
    passes = Passes(controller.passes.forward * looked, controller.passes.backward * looked)
    result = _result(controller, config, done, len(batches), passes, time.perf_counter() - started)
    return tuned, result, controller.schedule, controller.history


def _train_under_moving_masks_(
    tuned: PeftModel,
    dense: nn.Module | None,
    batches: TrainingData,
    config: DynamicSparsityTraining,
    calibration: Iterable[Batch],
    progress: bool,
) -> tuple[Controller, Trained]:
    """Train towards `dense`, or the labels without it; the controller and what was done."""
    controllers: list[Controller] = []

    def attach(optimizer: torch.optim.Optimizer, steps: int, scaler: torch.amp.GradScaler | None) -> MovingMasks:
        controller = Controller(tuned, optimizer, config, steps, data=calibration, scaler=scaler)
        controllers.append(controller)
        show(schedule_table(controller.schedule), progress)
        return MovingMasks(controller)

    def loss_of(student: nn.Module, batch: Batch, whole: Whole) -> torch.Tensor:
        return task_loss(student, batch) if dense is None else distillation_loss(student, dense, batch, whole=whole)

    training, held_out = hold_out(batches, config.seed) if config.early_stopping else (batches, [])
    # A student without dropout sees what its teacher sees.
    with nullcontext() if dense is None else evaluation_mode(tuned):
        done = train_(
            tuned,
            training,
            loss_of,
            config,
            over=supported_task(tuned).losses if dense is None else predictions_in(tuned),
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            seed=config.seed,
            attach=attach,
            held_out=held_out,
            progress=progress,
        )
    return controllers[0], done


@dataclass(frozen=True)
class MovingMasks:
    """A controller beside a training, see `niwaki.train.course.Beside`."""

    controller: Controller

    @property
    def final(self) -> bool:
        """Whether the masks will not move any more."""
        return self.controller.final

    def step(self) -> object:
        """Move the masks after a step of the optimizer."""
        return self.controller.step()

    def save(self, folder: Path) -> None:
        """Write the state of the controller."""
        save_controller(self.controller, folder)

    def restore_(self, folder: Path) -> None:
        """Take it up."""
        restore_controller_(self.controller, folder)


def _result(
    controller: Controller,
    config: DynamicSparsityTraining,
    done: Trained,
    batches: int,
    passes: Passes,
    seconds: float,
) -> StageResult:
    """What was done, `passes` being those made before the training."""
    grown = {name: sum(row.grown for row in controller.history if row.linear == name) for name in controller.sizes}
    total = sum(grown.values()) or 1
    return StageResult(
        name="dynamic",
        kind="sparsity",
        # A pattern n:m is of what may be cut, any other sparsity of all linears.
        requested=controller.wanted / controller.total if isinstance(controller.pattern, NByM) else config.sparsity,
        achieved=controller.zeros / controller.total,
        seconds=seconds,
        forward_passes=passes.forward
        + (2 if config.teacher == "dense" else 1) * (done.batches + done.looked) / batches,
        backward_passes=passes.backward + done.batches / batches,
        layers=tuple(
            SiteResult(name, "linear", grown[name] / total, int(controller.masks[name].sum()), size)
            for name, size in controller.sizes.items()
        ),
        warnings=() if controller.shortfall is None else (f"dynamic: {controller.shortfall}",),
        details={
            "zeros": controller.zeros,
            "weights": controller.total,
            "updates": len(controller.schedule.updates),
            "loss": done.loss,
            "course": _course(controller),
        },
    )


def _course(controller: Controller) -> list[dict[str, float]]:
    """What each update did to all linears together, by the step: at most `COURSE`, spread evenly."""
    steps = sorted({row.step for row in controller.history})
    shown = steps[:: -(-len(steps) // COURSE) or 1]
    if steps and shown[-1] != steps[-1]:
        shown.append(steps[-1])
    return [
        {"step": step, **{name.removeprefix("mask/"): value for name, value in controller.summary(step).items()}}
        for step in shown
    ]
