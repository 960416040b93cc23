"""A short recovery fine-tune: LoRA on what is left, with the dense model's logits as part of the target."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from niwaki.anatomy import body_of, sites_of, unwrap
from niwaki.config import Structured
from niwaki.errors import RequestError, WorkError


def task_head_names(model: nn.Module) -> list[str]:
    """Names of the modules beside the encoder that hold parameters: the task head."""
    inner, body = unwrap(model), body_of(model)
    return [n for n, m in inner.named_children() if m is not body and any(True for _ in m.parameters())]


def add_lora(model: PreTrainedModel, rank: int) -> PeftModel:
    """Wrap a plain model with LoRA on the linears of all its sites; its task head is trained in full."""
    linears = {id(linear) for site in sites_of(model) for linear in (*site.inputs, site.output)}
    names = [name for name, module in model.named_modules() if id(module) in linears]
    # No `task_type`: PEFT would add head names of its own to those given here.
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, modules_to_save=task_head_names(model))
    return cast(PeftModel, get_peft_model(model, config))


def train_(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    epochs: float,
    learning_rate: float,
    teacher: nn.Module | None = None,
    temperature: float = 2.0,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train the parameters that ask for gradients: AdamW, 10 % linear warm-up, linear decay.

    With a `teacher`, the loss is the mean of the task loss and the divergence from the teacher's logits (their mean
    squared difference where the label is a number). The order of the batches is shuffled in each epoch.

    Raises:
        RequestError: a batch without labels. WorkError: a loss that is not finite, with the step.
    """
    held = list(batches)
    steps = math.ceil(epochs * len(held))
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, (steps - s) / max(1, steps - warmup))
    )
    if teacher is not None:
        teacher.eval()
    was_training = model.training
    model.train()
    with torch.random.fork_rng(), tqdm(total=steps, desc="train", disable=not progress) as bar:
        torch.manual_seed(seed)
        order = random.Random(seed)
        for step in range(steps):
            if step % len(held) == 0:
                order.shuffle(held)
            batch = {name: value.to(device) for name, value in held[step % len(held)].items()}
            if "labels" not in batch:
                raise RequestError("train_data must have labels to train on, got a table without a label column")
            loss = _loss(model, batch, teacher, temperature)
            if not bool(torch.isfinite(loss)):
                raise WorkError(f"training: the loss is not finite at step {step + 1} of {steps}; lower learning_rate")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    model.train(was_training)


def _loss(
    model: nn.Module, batch: dict[str, torch.Tensor], teacher: nn.Module | None, temperature: float
) -> torch.Tensor:
    output = model(**batch)
    if teacher is None:
        return output.loss
    with torch.no_grad():
        target = teacher(**{name: value for name, value in batch.items() if name != "labels"}).logits
    if target.shape[-1] == 1:
        return (output.loss + F.mse_loss(output.logits, target)) / 2
    student = F.log_softmax(output.logits / temperature, dim=-1)
    divergence = F.kl_div(student, F.softmax(target / temperature, dim=-1), reduction="batchmean") * temperature**2
    return (output.loss + divergence) / 2


def recover_(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    teacher: nn.Module,
    stage: Structured,
    progress: bool = True,
) -> nn.Module:
    """Train a pruned model for `stage.recover_epochs` and return it.

    A `PeftModel` goes on training its own adapter; a plain model gets a LoRA, which is merged at the end.
    """
    own = isinstance(model, PeftModel)
    if own:
        for name, parameter in model.named_parameters():
            active = any(f".{adapter}." in f"{name}." for adapter in model.active_adapters)
            parameter.requires_grad_(active and ("lora_" in name or ".modules_to_save." in name))
        student = model
    else:
        with torch.random.fork_rng():
            torch.manual_seed(stage.seed)
            student = add_lora(unwrap(model), stage.recover_lora_rank)
    train_(
        student,
        batches,
        stage.recover_epochs,
        stage.recover_learning_rate,
        teacher=teacher,
        seed=stage.seed,
        progress=progress,
    )
    return student if own else cast(nn.Module, student.merge_and_unload())  # type: ignore[operator]
