"""Fine-tuning, with LoRA or of all weights: what makes the models that Niwaki prunes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import check_model, check_trainable
from niwaki.anatomy import as_held, note_problem_, supported_task
from niwaki.config import Finetune
from niwaki.errors import check_kind
from niwaki.numerics.autograd import gradients_on
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.results import StageResult
from niwaki.train.data import check_training, hold_out, training_data
from niwaki.train.loop import task_loss, train_
from niwaki.train.prior import begin_with_prior_
from niwaki.train.undo import adapters_in_training_, weights_in_training_


def finetune(
    model: nn.Module, config: Finetune, data: Iterable[Batch], *, progress: bool = False
) -> tuple[PreTrainedModel | PeftModel, StageResult]:
    """Train LoRA and the task head on `data` (batches with `labels`); returns the `PeftModel` and what was done.

    A plain model gets a new adapter around it; a `PeftModel` trains on the adapters it has. With `full` all weights of
    a plain model are trained, in place, and it is what is returned. It is in evaluation mode afterwards. A training
    that fails or is interrupted leaves `model` as it came in. Zeros of a model that holds masks stay.

    Raises:
        RequestError: before anything is changed: the model is not supported or cannot be trained, or `data` are not
            batches with labels that it takes. WorkError: a loss that is not finite.
    """
    started = time.perf_counter()
    check_kind("config", config, Finetune, "Finetune")
    check_model(model)
    check_trainable(model, config.lora_rank, full=config.full)
    with seeded(config.seed), gradients_on(), as_held(model):
        batches = training_data(model, data, labels=True)
        check_training(model, config, batches)
        training, held_out = hold_out(batches, config.seed) if config.early_stopping else (batches, [])
        if config.full:
            prepared = weights_in_training_(model)
        else:
            prepared = adapters_in_training_(model, config.lora_rank, seed=config.seed)
        with prepared as tuned:
            tuned.train()
            note_problem_(tuned)
            begin_with_prior_(tuned, batches)
            done = train_(
                tuned,
                training,
                task_loss,
                config,
                over=supported_task(model).losses,
                epochs=config.epochs,
                learning_rate=config.rate,
                seed=config.seed,
                held_out=held_out,
                progress=progress,
            )
            tuned.eval()
    return cast("PreTrainedModel | PeftModel", tuned), StageResult(
        name="finetune",
        kind="params",
        requested=1.0,
        achieved=1.0,
        seconds=time.perf_counter() - started,
        forward_passes=(done.batches + done.looked) / len(batches),
        backward_passes=done.batches / len(batches),
        layers=(),
        details={"loss": done.loss},
    )
