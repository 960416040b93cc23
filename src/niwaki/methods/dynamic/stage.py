"""Dynamic sparsity as a stage of its own: LoRA is trained while the masks move, from the labels or the dense model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from peft import PeftModel
from rich.console import Console
from torch import nn

from niwaki.adapters import check_model, merge_, to_train_
from niwaki.anatomy import accepts_of, evaluation_mode
from niwaki.config import DynamicTraining
from niwaki.data import checked_batches
from niwaki.methods.dynamic.callback import schedule_table
from niwaki.methods.dynamic.controller import Controller
from niwaki.methods.dynamic.history import Update
from niwaki.methods.dynamic.schedules import Schedule
from niwaki.observe.units import Batch
from niwaki.results import SiteResult, StageResult
from niwaki.train.loop import task_loss, train_
from niwaki.train.recover import distillation_loss


def train_dynamic(
    model: nn.Module,
    config: DynamicTraining,
    data: Iterable[Batch],
    *,
    calibration: Iterable[Batch] = (),
    progress: bool = False,
) -> tuple[PeftModel, StageResult, Schedule, list[Update]]:
    """Train a model's adapters (new ones on a plain model) under moving masks.

    Allocations that need it look at the batches of `calibration`. Returns the `PeftModel`, what was done, the schedule,
    and what every update did. The importance of a linear is its share of all weights that grew.

    Raises:
        RequestError: before any training: see `niwaki.methods.dynamic.Controller`.
        WorkError: a loss that is not finite.
    """
    started = time.perf_counter()
    check_model(model)
    taught = config.teacher == "dense"
    batches = checked_batches(accepts_of(model), data, labelled=not taught)
    calibration = checked_batches(accepts_of(model), calibration, "calibration", empty=True)
    dense = merge_(copy.deepcopy(model)).eval() if taught else None
    tuned = to_train_(model, config.lora_rank)
    tuned.train()
    controllers: list[Controller] = []

    def attach(optimizer: torch.optim.Optimizer, steps: int) -> Callable[[], object]:
        controller = Controller(tuned, optimizer, config, steps, data=calibration)
        controllers.append(controller)
        if progress:
            Console(stderr=True).print(schedule_table(controller.schedule))
        return controller.step

    def loss_of(student: nn.Module, batch: Batch) -> torch.Tensor:
        return task_loss(student, batch) if dense is None else distillation_loss(student, dense, batch)

    # A student without dropout sees what its teacher sees.
    with evaluation_mode(tuned) if taught else nullcontext():
        loss = train_(
            tuned,
            batches,
            loss_of,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            seed=config.seed,
            attach=attach,
            progress=progress,
        )
    tuned.eval()
    controller = controllers[0]
    controller.finish()
    grown = {name: sum(row.grown for row in controller.history if row.linear == name) for name in controller.sizes}
    total = sum(grown.values()) or 1
    layers = tuple(
        SiteResult(name, "linear", grown[name] / total, int(controller.masks[name].sum()), size)
        for name, size in controller.sizes.items()
    )
    result = StageResult(
        name="dynamic",
        kind="sparsity",
        requested=config.sparsity,
        achieved=controller.zeros / controller.total,
        seconds=time.perf_counter() - started,
        forward_passes=float(config.epochs) * (1 + taught),
        backward_passes=float(config.epochs),
        layers=layers,
        details={
            "zeros": controller.zeros,
            "weights": controller.total,
            "updates": len(controller.schedule.updates),
            "loss": loss,
        },
    )
    return tuned, result, controller.schedule, controller.history
