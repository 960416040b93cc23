"""What `result.json` says of a run: the machine, a model as measured, two models timed in turn."""

from __future__ import annotations

import datetime
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import count
from niwaki.config import Request
from niwaki.data import Batches
from niwaki.evaluate import Judged, cpu_name, judge, model_latency, size_bytes
from niwaki.numerics.device import device_named
from niwaki.processes import from_first

_MUCH = 100
"""Predictions: fewer may well be the same."""


@dataclass(frozen=True)
class Clock:
    """When a run started."""

    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    ticks: float = field(default_factory=time.perf_counter)

    def environment(self, request: Request, earlier: float = 0.0) -> dict[str, Any]:
        """Versions, machine, start and seconds so far: a result without them is no result.

        `earlier` seconds were spent by a run that was stopped, on what this one took up.
        """
        return {
            **{name: version(name) for name in ("niwaki", "torch", "transformers", "peft")},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "device": str(device_named(request.device)),
            "seed": request.seed,
            "started": self.started.isoformat(),
            "seconds": time.perf_counter() - self.ticks + earlier,
        }


@dataclass(frozen=True)
class State:
    """A model as measured: its `record` as in `result.json`, and what it said of the evaluation data."""

    record: dict[str, Any]
    judged: Judged


def measure(
    model: nn.Module,
    batches: Batches | None,
    length: float,
    metric: str | None,
    size: int | None = None,
    progress: bool = False,
) -> State:
    """Quality (nothing without batches that have labels), exact counts and size of a plain model.

    `length` is the mean number of real tokens; `size` its bytes where they are not those of its tensors.
    """
    counts = count(model, length)
    judged = judge(model, batches, metric, progress) if batches and batches.labelled else Judged({})
    record = {
        "quality": judged.quality,
        "interval": {name: list(span) for name, span in judged.interval.items()},
        "params": counts.block_params,
        "embedding_params": counts.embedding_params,
        "head_params": counts.head_params,
        "flops": counts.block_flops,
        "size_bytes": size_bytes(model) if size is None else size,
        "zeros": counts.zeros,
    }
    return State(record, judged)


def says_nothing(states: dict[str, State]) -> list[str]:
    """A warning for each model, by what it is called, that says the same of all that it was asked, where that is much.

    One whose head is new is not expected to say more.
    """
    found = []
    for name, state in states.items():
        said = state.judged.predictions
        if said is not None and len(said.values) >= _MUCH and not state.record.get("new_head") and said.all_alike:
            found.append(f"quality: {name} says the same in all its {len(said.values)} predictions of eval_data")
    return found


def time_in_turn(
    dense: nn.Module,
    pruned: nn.Module,
    length: int,
    dense_record: dict[str, Any],
    pruned_record: dict[str, Any],
    progress: bool = False,
) -> dict[str, Any]:
    """The `latency` object of `result.json`; each side's milliseconds are written into its own record too."""
    latency = from_first(lambda: model_latency(dense, pruned, length, longer=True, progress=progress))
    note_times(latency, dense_record, pruned_record)
    return latency


def note_times(latency: dict[str, Any], dense_record: dict[str, Any], pruned_record: dict[str, Any]) -> None:
    """Write each side's milliseconds of a `latency` object into its own record."""
    for record, name in ((dense_record, "dense_ms"), (pruned_record, "pruned_ms")):
        record["latency"] = {key: value[name] for key, value in latency.items() if isinstance(value, dict)}
