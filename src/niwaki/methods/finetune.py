"""Fine-tuning with LoRA: what makes the models that Niwaki prunes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from peft import PeftModel
from torch import nn

from niwaki.adapters import check_model, to_train_
from niwaki.anatomy import accepts_of
from niwaki.config import Finetune
from niwaki.data import checked_batches
from niwaki.observe.units import Batch
from niwaki.results import StageResult
from niwaki.train.loop import task_loss, train_


def finetune(
    model: nn.Module, config: Finetune, data: Iterable[Batch], *, progress: bool = False
) -> tuple[PeftModel, StageResult]:
    """Train LoRA and the task head on `data` (batches with `labels`); returns the `PeftModel` and what was done.

    A plain model gets a new adapter around it; a `PeftModel` trains on the adapters it has.

    Raises:
        RequestError: the model is not supported, or not made for these batches; before it is changed.
        WorkError: a loss that is not finite.
    """
    started = time.perf_counter()
    check_model(model)
    batches = checked_batches(accepts_of(model), data, labelled=True)
    tuned = to_train_(model, config.lora_rank)
    tuned.train()
    loss = train_(
        tuned,
        batches,
        task_loss,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        seed=config.seed,
        progress=progress,
    )
    tuned.eval()
    return tuned, StageResult(
        name="finetune",
        kind="params",
        requested=1.0,
        achieved=1.0,
        seconds=time.perf_counter() - started,
        forward_passes=float(config.epochs),
        backward_passes=float(config.epochs),
        layers=(),
        details={"loss": loss},
    )
