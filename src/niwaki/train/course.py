"""A training between two of its steps: all that the next ones follow from, as tensors and as plain data."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from niwaki.processes import known_to_all, number
from niwaki.train.best import Best


class Beside(Protocol):
    """What goes along with a training, after each of its steps: masks that move."""

    @property
    def final(self) -> bool:
        """Whether the model is from here on what was asked: one from before is never the best."""
        ...

    def step(self) -> object:
        """To be called after each step of the optimizer, and after one that was skipped."""
        ...

    def save(self, folder: Path) -> None:
        """Write what it has come to into an existing folder."""
        ...

    def restore_(self, folder: Path) -> None:
        """Take up what `save` wrote."""
        ...


@dataclass
class Course:
    """How far a training has come: `done` steps on `batches` batches, the mean losses of the last epoch's steps.

    Random numbers are drawn by PyTorch alone while it trains; what draws the order of the rows is not part of it.
    """

    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler | None
    best: Best | None
    beside: Beside | None
    losses: deque[float]
    done: int = 0
    batches: int = 0
    ended: bool = False

    @property
    def looks(self) -> int:
        """How often the loss on held-out batches was measured."""
        return 0 if self.best is None else self.best.looks

    def note(self, loss: float, batches: int, made: bool) -> None:
        """A step on so many batches is over; the optimizer `made` it, or it was skipped and the rate stays."""
        self.losses.append(loss)
        self.done, self.batches = self.done + 1, self.batches + batches
        if self.beside is not None:
            self.beside.step()
        if made:
            self.schedule.step()

    def look(self) -> None:
        """Measure the loss on held-out batches, where there are any and the model may be the best."""
        if self.best is not None and (self.beside is None or self.beside.final):
            self.best.look()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, moments, the best values, random states of all processes, by name."""
        found: dict[str, Tensor] = known_to_all({f"random/{number()}/{name}": state for name, state in _random()})
        found |= {f"trained/{name}": parameter for name, parameter in self.trained.items()}
        if self.best is not None:
            found |= {f"best/{place}": value for place, value in enumerate(self.best.values)}
        if not self.ended:
            for place, state in self.optimizer.state_dict()["state"].items():
                found |= {f"optimizer/{place}/{key}": value for key, value in state.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def plain(self) -> dict[str, Any]:
        """The rest, as JSON has it."""
        best = self.best
        return {
            "done": self.done,
            "batches": self.batches,
            "ended": self.ended,
            "losses": list(self.losses),
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "best": None if best is None else [best.lowest, best.looks, best.since],
        }

    @torch.no_grad()
    def restore_(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take up what `tensors` and `plain` gave."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor
        for name, value in parts["trained"].items():
            self.trained[name].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts.get("optimizer", {}).items():
            place, _, key = name.partition("/")
            moments.setdefault(int(place), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(plain["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.scaler is not None:
            self.scaler.load_state_dict(plain["scaler"])
        if self.best is not None:
            self.best.lowest, self.best.looks, self.best.since = plain["best"]
            device = next(iter(self.trained.values())).device
            values = parts.get("best", {})
            self.best.values = [values[str(place)].to(device) for place in range(len(values))]
        self.losses.extend(plain["losses"])
        self.done, self.batches, self.ended = plain["done"], plain["batches"], plain["ended"]
        for name, state in parts["random"].items():
            process, _, device = name.partition("/")
            if int(process) == number():
                torch.set_rng_state(state) if device == "cpu" else torch.cuda.set_rng_state(state, int(device))


def _random() -> Iterator[tuple[str, Tensor]]:
    """The random states of this process: of the CPU, and of each GPU, by number, where PyTorch has begun to use any."""
    yield "cpu", torch.get_rng_state()
    if torch.cuda.is_initialized():
        yield from ((str(place), state) for place, state in enumerate(torch.cuda.get_rng_state_all()))
