"""How much memory a stage will take, estimated before any work: what `--max-memory` is held against.

Counted, above what the process holds with model and data loaded: whole copies of the model, masks and scores, the sums
of the widest block with the work space of its solves, those that structured pruning makes of gradients of all blocks,
optimizer states, and what one batch takes, which is measured on a single row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import nn

from niwaki.anatomy import layers_of, linears_of, predictions_of, sites_of, weight_of
from niwaki.config import STAGES, DynamicSparsityTraining, Finetune, LayerAdaptive, Stage, Structured
from niwaki.config.layer_adaptive import SOLVED
from niwaki.config.planned import Planned
from niwaki.config.training import Training
from niwaki.data import token_mask, without_labels
from niwaki.errors import RequestError
from niwaki.methods.weight_profiles import looks_at_data, weight_need
from niwaki.observe import Batch, frozen, to_device

_SOLVES = 5
"""Matrices in float64 of a linear's inputs that a solve holds at once."""

_SEARCHED = 32
"""Bytes a weight of what a search for the best mask of one linear holds beside that."""

_LEARNED = 28
"""Bytes a weight of a layer that learns: float32 values, gradients and two moments, and what masks make of them."""

_FACTOR = 20
"""Bytes a parameter of LoRA: its value, gradient and two moments, and the best value where one is kept."""

_RECOVERED = 24
"""Bytes a weight of blocks that recover: gradient, two moments, the value to go back to, the best, the masked one."""

_NARROW = 24
"""Copies of what is no block of a model, in PyTorch and in an engine, with its layers at all widths timed there."""

_RANKED = 64
"""Bytes a weight of scores in float64 and their order, over all weights where one threshold is found for them."""


def check_memory(limit: int, model: nn.Module, stages: Sequence[Stage], data: Sequence[Batch], copies: int) -> None:
    """Refuse stages that will take more than `limit` bytes of memory, this process and all it holds included.

    `copies` of the model are held by the caller beside what a stage holds.

    Raises:
        RequestError: saying what is needed, and by which stage.
    """
    held = psutil.Process().memory_info().rss + copies * weight_bytes(model)
    # Between two stages the model is measured, in a copy where it has adapters or masks.
    between = weight_bytes(model) + forward_bytes(model, data) if len(stages) > 1 else 0
    for stage in stages:
        tried = weight_bytes(model) if isinstance(stage, Planned) and stage.keep_quality is not None else 0
        total = held + tried + max(between, needed(model, stage, data))
        if total > limit:
            rows = max(len(batch["input_ids"]) for batch in data)
            name = next(name for name, kind in STAGES.items() if isinstance(stage, kind))
            rule = f"max_memory must be at least {_shown(total)} for {name} with batches of {rows} rows"
            raise RequestError(f"{rule} (a smaller batch_size needs less), got {_shown(limit)}")


def needed(model: nn.Module, stage: Stage, data: Sequence[Batch]) -> int:
    """Bytes that `stage` takes above the model and the data, at its most; meant to be too many rather than too few."""
    weights, linears = weight_bytes(model), linears_of(model)
    single = sum(linear.size for linear in linears)
    widest = max(linear.shape[1] for linear in linears) ** 2
    by_layer: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for linear in linears:
        rows, columns = linear.shape
        sums = 8 * (columns + 1) * (columns + 1 + rows)
        by_layer[linear.layer] += sums + 4 * linear.size
        sizes[linear.layer] += linear.size
    block = max(by_layer.values()) + 8 * _SOLVES * widest
    if getattr(stage, "reconstruct", "none") != "none":
        block += _LEARNED * max(sizes.values())
    factors = _FACTOR * getattr(stage, "lora_rank", 16) * sum(sum(linear.shape) for linear in linears)
    recovered = 0
    if getattr(stage, "recover_epochs", 0):
        recovered = _RECOVERED * single if getattr(stage, "recover_full", False) else factors
    match stage:
        case Structured():
            sums = sum(4 * weight_of(site.output).shape[0] ** 2 for site in sites_of(model))
            found = weights + sums + block
            if stage.latency is not None:
                elsewhere = stage.latency_engine != "pytorch"
                found += 4 * weights + _NARROW * (weights - 4 * single) if elsewhere else weights
            return found + max(backward_bytes(model, data), recovered)
        case LayerAdaptive():
            stage = stage.resolved()
            solves = stage.weight_score in SOLVED or stage.allocation == "search" or stage.repair != "none"
            largest = max(linear.size for linear in linears)
            found = single // 8 + (block if solves else _RANKED * largest)
            found += _SEARCHED * largest * (stage.weight_score == "alps")
            found += weights * (stage.steps > 1 or stage.recover_epochs > 0)
            found += _RANKED * single * (stage.allocation in ("global", "lamp"))
            found += 4 * single * (stage.weight_score == "gradient")
            need = weight_need(stage)
            backward = need.task or need.contrast or stage.compares_rows
            if backward or stage.repair == "least-squares" or stage.recover_epochs:
                found += backward_bytes(model, data)
            elif looks_at_data(stage):
                found += forward_bytes(model, data)
            return found + recovered
        case DynamicSparsityTraining():
            # Masked weights, gradients, saliency and its uncertainty in float32; four masks.
            return weights + (4 * 4 + 4) * single + factors + 2 * _trained_bytes(model, stage, data)
        case Finetune():
            # Of all weights: gradients, two moments, the values to go back to, and the best.
            copies = 4 + (stage.early_stopping > 0)
            return (copies * weights if stage.full else factors) + _trained_bytes(model, stage, data)
        case _:
            return weights


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def backward_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes that a forward pass of the longest batch leaves for its backward pass, and thrice its logits in float32."""
    activations, logits = _of_a_batch(model, data)
    return activations + 3 * logits


def _trained_bytes(model: nn.Module, stage: Training, data: Sequence[Batch]) -> int:
    """`backward_bytes`, of layers that run again what one of them leaves, and what each is given."""
    activations, logits = _of_a_batch(model, data)
    if stage.gradient_checkpointing:
        layers = layers_of(model)
        tokens = max(batch["input_ids"].numel() for batch in data)
        width = max(weight_of(site.output).shape[0] for site in sites_of(model))
        activations = activations // len(layers) + 4 * len(layers) * tokens * width
    return activations + 3 * logits


def forward_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes of a forward pass of the longest batch: what one layer leaves, and thrice the logits in float32."""
    activations, logits = _of_a_batch(model, data)
    return activations // len(layers_of(model)) + 3 * logits


def _of_a_batch(model: nn.Module, data: Sequence[Batch]) -> tuple[int, int]:
    """Bytes that the longest batch leaves for its backward pass, and those of its logits in float32."""
    batch = max(data, key=lambda each: each["input_ids"].shape[1])
    rows = max(len(each["input_ids"]) for each in data)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with frozen(model, with_gradients=True) as device:
        one: dict[str, Any] = {key: value[:1] for key, value in without_labels(to_device(batch, device)).items()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(**one)  # held, so that no storage is used twice
    everything = torch.ones_like(token_mask(one)).bool()
    return rows * sum(found.values()), rows * 4 * predictions_of(model, outputs, everything).values.numel()


def _shown(amount: int) -> str:
    return f"{amount / 2**30:.2f}GiB"
