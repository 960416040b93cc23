"""What a training goes through, checked before any work."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

from torch import nn

from niwaki.adapters import check_trainable, check_weights_trainable
from niwaki.anatomy import accepts_of, supported_task
from niwaki.config import LayerAdaptive, Structured, Training
from niwaki.data import Batches, apart, checked_batches, token_mask
from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError
from niwaki.observe import Batch
from niwaki.train.precision import check_precision

TrainingData = Batches | list[Batch]
"""What is trained on: rows, which make other batches each epoch, or batches as they are."""
SHARE_HELD_OUT, MOST_HELD_OUT = 8, 16
"""One of how many batches is not trained on, to see by it which step was the best, and how many at most."""


def training_data(model: nn.Module, data: Iterable[Batch], *, labels: bool, name: str = "data") -> TrainingData:
    """`data` to train `model` on, checked before anything is changed; with `labels`, for a loss that is taken on them.

    Raises:
        RequestError: see `niwaki.data.checked_batches`; labels of which none counts.
    """
    batches = checked_batches(accepts_of(model), data, name, labelled=labels)
    if labels and not any(supported_task(model).losses(batch) for batch in batches):
        raise RequestError(f"{name} must hold labels for a loss to be taken of, got none but {UNLABELLED}")
    return data if isinstance(data, Batches) else batches


def recovery_data(
    model: nn.Module,
    config: Structured | LayerAdaptive,
    given: Iterable[Batch] | None,
    calibration: list[Batch],
) -> TrainingData:
    """What recovery will train on: the batches `given`, those of `calibration` where there are none.

    It comes before any work. Without `recover_epochs` nothing is looked at.

    Raises:
        RequestError: the model cannot be trained (see `check_trainable`) or not as asked, or the batches given are not
            what it takes.
    """
    if not config.recover_epochs:
        return calibration
    if config.recover_full:
        check_weights_trainable(model)
    else:
        check_trainable(model)
    training = calibration if given is None else training_data(model, given, labels=False, name="training_data")
    check_training(model, config, training)
    return training


def check_training(model: nn.Module, options: Training, data: TrainingData) -> None:
    """Refuse, before any work, options that cannot be met on this model and data.

    Raises:
        RequestError: a precision that the device does not compute in; too few batches, or texts, to hold any out.
    """
    check_precision(model, options)
    check_held_out(options, data)


def check_held_out(options: Training, data: TrainingData) -> None:
    """Refuse to end a training early by rows that cannot be held out.

    Raises:
        RequestError: too few batches, or texts.
    """
    if options.early_stopping and not hold_out(data, 0)[1]:
        few = len(data) < SHARE_HELD_OUT
        what = f"fewer than {SHARE_HELD_OUT} batches of training data" if few else "texts of too many rows each"
        rule = f"early_stopping must be 0 for {what}, to hold one out"
        raise RequestError(f"{rule}, got {options.early_stopping} for {len(data)}")


def hold_out(data: TrainingData, seed: int, seen: Iterable[Batch] = ()) -> tuple[TrainingData, list[Batch]]:
    """`data` without an eighth of it, at most `MOST_HELD_OUT` batches, and these; none of fewer than 8 batches.

    Of `Batches` whole texts are held out, see `niwaki.data.held_out`. Rows that are among those `seen` come last: what
    a model was fitted to says too much good of it, and no training would seem to make it better.
    """
    count = min(len(data) // SHARE_HELD_OUT, MOST_HELD_OUT)
    if not count:
        return data, []
    known = {ids for batch in seen for ids in _ids_of(batch)}
    if not isinstance(data, Batches):
        drawn = random.Random(seed).sample(range(len(data)), len(data))
        held = set(sorted(drawn, key=lambda index: not known.isdisjoint(_ids_of(data[index])))[:count])
        return [batch for i, batch in enumerate(data) if i not in held], [data[i] for i in sorted(held)]
    parts = apart(data.rows, count * data.batch_size, seed, lambda row: _ids(row["input_ids"]) in known)
    training, kept = (Batches(rows, data.tokenizer, data.batch_size) for rows in parts)
    return training, list(kept)


def _ids_of(batch: Batch) -> list[tuple[int, ...]]:
    """The tokens of each row, of all its texts one after the other, without padding."""
    mask = token_mask(batch).view(batch["input_ids"].shape).bool()
    return [tuple(row[real].tolist()) for row, real in zip(batch["input_ids"], mask, strict=True)]


def _ids(row: list[Any]) -> tuple[int, ...]:
    """The same of a row as it stands in `Batches`."""
    return tuple(itertools.chain(*row)) if isinstance(row[0], list) else tuple(row)
