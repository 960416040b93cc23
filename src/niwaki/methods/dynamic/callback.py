"""Dynamic sparsity as one line in a Trainer, or in a loop of one's own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState

from niwaki.config import DynamicSparsityConfig
from niwaki.errors import RequestError
from niwaki.methods.dynamic.controller import Controller
from niwaki.methods.dynamic.history import HISTORY, write_history
from niwaki.methods.dynamic.optimizer_state import statement
from niwaki.methods.dynamic.plots import HISTORY_PICTURE, SCHEDULE_PICTURE, plot_history, plot_schedule
from niwaki.methods.dynamic.saved import STATE, restore_controller_, save_controller
from niwaki.methods.dynamic.schedules import Schedule
from niwaki.methods.weight_profiles import DATA_RULES
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.progress import say, show

if TYPE_CHECKING:  # they take a second to import
    from transformers import Trainer, TrainingArguments

CALIBRATION_ROWS = 2048
"""Rows of the training data that an allocation which needs data looks at."""


class DynamicSparsity(TrainerCallback):
    """`Trainer(..., callbacks=[niwaki.DynamicSparsity(sparsity=0.8)])`.

    The options are those of `niwaki.DynamicSparsityConfig`.

    In a loop of one's own: `controller = DynamicSparsity(sparsity=0.8).attach(model, optimizer, steps)`, then
    `controller.step()` after every `optimizer.step()` and `controller.finish()` at the end.

    A training that dies leaves the model masked as it was then, until `controller.detach()` puts it back; another
    training of the same model does so by itself.

    `quiet` prints and draws nothing; the history is written beside the checkpoints all the same. `resume_from` is the
    checkpoint that the Trainer resumes from, where that is not in its output folder. What updates did is in the
    Trainer's log history; `log_through(trainer)` brings it to its reporters too.

    Raises:
        RequestError: an option that is not known or out of range.
    """

    def __init__(self, *, quiet: bool = False, resume_from: str | Path | None = None, **options: Any) -> None:
        try:
            self.config = DynamicSparsityConfig(**options)
        except TypeError as error:
            known = ", ".join(DynamicSparsityConfig.__dataclass_fields__)
            raise RequestError(f"options must be sparsity and any of {known}, got {', '.join(options)}") from error
        self.quiet = quiet
        self.resume_from = resume_from
        self.controller: Controller | None = None
        self._logged = 0

    def attach(
        self, model: nn.Module, optimizer: Any, steps: int, *, data: Iterable[Batch] = (), scaler: Any = None
    ) -> Controller:
        """The controller of one training of `steps` optimizer steps; see `niwaki.methods.dynamic.Controller`."""
        return Controller(model, optimizer, self.config, steps, data=data, scaler=scaler)

    def log_through(self, trainer: Trainer) -> None:
        """Let what updates did reach everything that `report_to` names: those callbacks come before the user's."""
        callbacks = trainer.callback_handler.callbacks
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Check everything, hold the masks, print and draw the schedule; go on from where the Trainer resumes."""
        if objects["model"] is None or args.deepspeed or args.fsdp:
            raise RequestError("dynamic sparsity must run on whole weights: with one process or DDP, got sharded ones")
        if self.controller is not None:  # of a training that died
            self.controller.detach()
        scaler = getattr(objects["optimizer"], "scaler", None)
        with seeded(self.config.seed):
            data: Iterable[Batch] = ()
            if self.config.allocation in DATA_RULES:
                data = _calibration(objects["train_dataloader"], args.per_device_train_batch_size, self.config.seed)
            controller = self.attach(objects["model"], objects["optimizer"], state.max_steps, data=data, scaler=scaler)
        try:
            if state.global_step:
                restore_controller_(controller, self._checkpoint(args, state))
            if state.is_world_process_zero and not self.quiet:
                self._say(controller, args)
        except BaseException:
            controller.detach()
            raise
        self.controller, self._logged = controller, len(controller.history)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """A model from before the masks were final is never the best one."""
        self._of_training.check_not_detached()
        self._no_best_yet(state)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Move the masks, right after the optimizer."""
        self._of_training.step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Ask for a log after an update; its figures are added by `on_log`."""
        if len(self._of_training.history) > self._logged:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **objects: Any,
    ) -> None:
        """Add what the last update did to what is logged, for whatever `report_to` names."""
        if self.controller is None or len(self.controller.history) <= self._logged or logs is None:
            return
        made = self.controller.history[self._logged :]
        found = self.controller.summary(made[-1].step)
        logs.update(found)
        state.log_history[-1].update(found)
        self._logged = len(self.controller.history)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        """Save the controller beside the Trainer's own checkpoint."""
        self._no_best_yet(state)
        if state.is_world_process_zero:
            save_controller(self._of_training, _folder(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Take the hooks away; write and draw the history."""
        controller = self._of_training
        controller.finish()
        if state.is_world_process_zero:
            out = Path(str(args.output_dir))
            write_history(controller.history, out / HISTORY)
            if controller.history and not self.quiet:
                plot_history(controller.history, out / HISTORY_PICTURE)

    @property
    def _of_training(self) -> Controller:
        assert self.controller is not None, "on_train_begin comes first"
        return self.controller

    def _say(self, controller: Controller, args: TrainingArguments) -> None:
        """Print and draw the schedule."""
        show(schedule_table(controller.schedule), progress=True)
        say(statement(controller.optimizer))
        plot_schedule(controller.schedule, Path(str(args.output_dir)) / SCHEDULE_PICTURE)

    def _no_best_yet(self, state: TrainerState) -> None:
        if not self._of_training.final:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The folder that the Trainer resumes from: as asked, as its arguments name it, or in its output folder."""
        named = [place for place in (self.resume_from, args.resume_from_checkpoint) if isinstance(place, str | Path)]
        places = [*map(Path, named), _folder(args, state)]
        for place in places:
            if (place / STATE).is_file():
                return place
        tried = ", ".join(str(place) for place in places)
        raise RequestError(f"resume_from must be given: a checkpoint that holds {STATE}, tried {tried}")


def schedule_table(schedule: Schedule) -> Table:
    """The updates of a schedule: step, sparsity, share of the active weights that may be replaced."""
    config = schedule.config
    title = f"{len(schedule.updates)} updates in {schedule.steps} steps, drop {config.drop}, grow {config.grow}"
    table = Table("step", "sparsity", "may be replaced", title=title)
    for step in schedule.updates:
        table.add_row(str(step), f"{schedule.sparsity(step):.4f}", f"{schedule.replaced(step):.4f}")
    return table


def _calibration(loader: Any, rows: int, seed: int) -> Iterator[Batch]:
    """Batches of rows drawn from the seed, the same on all processes; the Trainer's own loader is left alone.

    Of a data set without a length, which can only be read in its order, they are the first ones.
    """
    found = loader.dataset
    if isinstance(found, Sized):
        places = range(len(found))
        drawn = random.Random(seed).sample(places, min(CALIBRATION_ROWS, len(places)))
        found = Subset(cast(Any, found), drawn)
    batches = DataLoader(found, batch_size=rows, collate_fn=loader.collate_fn)
    return (dict(batch) for batch in itertools.islice(batches, -(-CALIBRATION_ROWS // rows)))


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
