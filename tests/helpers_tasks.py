"""Tiny models of every task beside classifying rows and predicting a next token, and batches for them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from niwaki.anatomy import TASKS, Task, predictions_of
from niwaki.data import token_mask, without_labels
from tiny import ROWS, configs, shorten_

OTHERS = [task for task in TASKS if task.supported and task.name not in ("text-classification", "causal")]
PAIRS = [
    pytest.param(task, family, id=f"{task.name}-{family}")
    for task in OTHERS
    for family, config in configs().items()
    if family in ROWS and type(config) in task.auto._model_mapping  # type: ignore[attr-defined]
]
"""Every such task with every row of families that has the head."""


def model_of(task: Task, family: str, seed: int = 0, layers: int | None = None) -> PreTrainedModel:
    """A random model of this task, whose units all matter; later draws go on from it."""
    model, state = _drawn(task, family, seed, layers)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@functools.cache
def _drawn(task: Task, family: str, seed: int, layers: int | None) -> tuple[PreTrainedModel, torch.Tensor]:
    """The model of `model_of`, to be copied, and the global random state after it."""
    torch.manual_seed(seed)
    config = configs()[family]
    if layers:
        shorten_(config, layers)
    if task.labels in ("token", "span"):
        config.num_labels = 2 if task.labels == "span" else 5
    model = task.auto.from_config(config)  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and "ln_" not in name:
                parameter.normal_(0, 0.15)
    return model.eval(), torch.get_rng_state()


def batches_of(task: Task, count: int = 4, rows: int = 6, length: int = 12) -> list[dict[str, Any]]:
    """Batches with padding and what the task has for labels."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        shape = (rows, 2, length) if task.labels == "choice" else (rows, length)
        ids = torch.randint(5, 60, shape, generator=generator)
        lengths = torch.randint(3, length + 1, (*shape[:-1], 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        batch = {"input_ids": ids * mask, "attention_mask": mask}
        if task.labels in ("token", "word"):
            classes = 5 if task.labels == "token" else 60
            labels = torch.randint(classes, shape, generator=generator)
            batch["labels"] = labels.masked_fill(mask == 0, -100)
        elif task.labels == "span":
            batch["start_positions"] = torch.zeros(rows, dtype=torch.long)
            batch["end_positions"] = torch.ones(rows, dtype=torch.long)
        elif task.labels == "choice":
            batch["labels"] = torch.randint(2, (rows,), generator=generator)
        made.append(batch)
    return made


def said(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """What the model predicts of a batch."""
    with torch.no_grad():
        found = predictions_of(model, model(**without_labels(batch)), token_mask(batch).bool())
    return found.values if found.possible is None else found.values[found.possible]
