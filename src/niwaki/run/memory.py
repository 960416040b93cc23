"""How much memory a stage will take, estimated before any work: what `--max-memory` is held against.

Counted, above what the process holds with model and data loaded: whole copies of the model, masks and scores, the sums
of the widest block with the work space of its solves, those that structured pruning makes of gradients of all blocks,
optimizer states, and what one batch takes. What is not there at the same time is not added up: a pass backward is over
before anything is solved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import nn

from niwaki.anatomy import (
    BlockLinear,
    is_language_model,
    layers_of,
    left_by_layers,
    linears_of,
    predictions_of,
    runs_of,
    sites_of,
    unwrap,
    weight_of,
)
from niwaki.anatomy.said import AT_ONCE, FEWEST
from niwaki.config import STAGES, DynamicSparsityTraining, Finetune, LayerAdaptive, Stage, Structured
from niwaki.config.layer_adaptive import SOLVED
from niwaki.config.planned import Planned
from niwaki.data import token_mask, without_labels
from niwaki.errors import RequestError
from niwaki.methods.weight_profiles import looks_at_data, weight_need
from niwaki.observe import Batch, frozen, to_device
from niwaki.observe.watch import MOST_LEFT

_SOLVES, _MASKED_SOLVES = (3, 5), (4, 7)
"""Matrices in float64 of a linear's inputs, and of its weights, that a solve holds at once; where it chooses a mask."""

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
    factors = _FACTOR * getattr(stage, "lora_rank", 16) * sum(sum(linear.shape) for linear in linears)
    match stage:
        case Structured():
            gradients = sum(4 * weight_of(site.output).shape[0] ** 2 for site in sites_of(model))
            observed = gradients + max(_observing_bytes(model, data), _block_bytes(linears, _SOLVES))
            refitted = weights + _block_bytes(linears, _SOLVES) + forward_bytes(model, data) + _learning(stage, linears)
            found = max(observed, refitted)
            if stage.recover_epochs:
                found = max(found, weights + _recovering(stage, model, data, factors))
            if stage.latency is not None:
                elsewhere = stage.latency_engine != "pytorch"
                found += 4 * weights + _NARROW * (weights - 4 * single) if elsewhere else weights
            return found + _token_bytes(linears, data)
        case LayerAdaptive():
            return single // 8 + _zeroing(model, stage.resolved(), linears, data, factors)
        case DynamicSparsityTraining():
            # Masked weights, gradients, saliency and its uncertainty in float32; four masks.
            passing = 2 * backward_bytes(model, data, stage.gradient_checkpointing)
            return weights + (4 * 4 + 4) * single + factors + passing
        case Finetune():
            # Of all weights: gradients, two moments, the values to go back to, and the best.
            copies = 4 + (stage.early_stopping > 0)
            trained = copies * weights if stage.full else factors
            return trained + backward_bytes(model, data, stage.gradient_checkpointing)
        case _:
            return weights


def _zeroing(
    model: nn.Module, stage: LayerAdaptive, linears: Sequence[BlockLinear], data: Sequence[Batch], factors: int
) -> int:
    """Bytes that a resolved layer-adaptive stage takes beside its masks."""
    need, weights, single = weight_need(stage), weight_bytes(model), sum(linear.size for linear in linears)
    repairs = stage.repair == "least-squares"
    observed = 0
    if need.task or need.contrast or stage.compares_rows or repairs:
        observed = _observing_bytes(model, data)
    elif looks_at_data(stage):
        observed = forward_bytes(model, data)
    largest = max(linear.size for linear in linears)
    chosen = _RANKED * largest
    if stage.weight_score in SOLVED or stage.allocation == "search" or stage.repair != "none":
        chosen = _block_bytes(linears, _MASKED_SOLVES, at_once=stage.fast) + forward_bytes(model, data)
        chosen += _SEARCHED * largest * (stage.weight_score == "alps") + _learning(stage, linears)
        chosen += weights // len(layers_of(model))  # a layer as it was
    found = max(observed, chosen)
    if stage.recover_epochs:
        found = max(found, _recovering(stage, model, data, factors))
    found += weights * (stage.steps > 1 or stage.recover_epochs > 0)
    found += _RANKED * single * (stage.allocation in ("global", "lamp"))
    found += 4 * single * (stage.weight_score == "gradient")
    return found + _token_bytes(linears, data) * repairs


def _block_bytes(linears: Sequence[BlockLinear], solves: tuple[int, int], at_once: bool = False) -> int:
    """Bytes of sums and solves of those linears that are looked at in one pass, where they are most."""
    together: dict[Any, list[BlockLinear]] = {}
    for linear in linears:
        together.setdefault(linear.layer if at_once else (linear.site.name, linear.writes), []).append(linear)
    most = 0
    for group in together.values():
        sums = sum(8 * (columns + 1) * (columns + 1 + rows) for rows, columns in (linear.shape for linear in group))
        square, whole = solves
        solved = max(8 * (square * linear.shape[1] ** 2 + whole * linear.size) for linear in group)
        most = max(most, sums + solved)
    return most


def _token_bytes(linears: Sequence[BlockLinear], data: Sequence[Batch]) -> int:
    """Bytes of what each token matters to each linear: a size, and a weight."""
    return 8 * len(linears) * sum(batch["input_ids"].numel() for batch in data)


def _learning(stage: Structured | LayerAdaptive, linears: Sequence[BlockLinear]) -> int:
    """Bytes of a layer that learns."""
    sizes = Counter[int]()
    for linear in linears:
        sizes[linear.layer] += linear.size
    return 0 if stage.reconstruct == "none" else _LEARNED * max(sizes.values())


def _recovering(stage: Structured | LayerAdaptive, model: nn.Module, data: Sequence[Batch], factors: int) -> int:
    """Bytes of what is trained in a recovery, and of its passes."""
    passing = backward_bytes(model, data, stage.gradient_checkpointing)
    return passing + (_RECOVERED * sum(linear.size for linear in linears_of(model)) if stage.recover_full else factors)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def backward_bytes(model: nn.Module, data: Sequence[Batch], again: bool = False) -> int:
    """Bytes that a forward pass of the longest batch leaves for its backward pass, and thrice its logits in float32.

    Of layers that run `again` what one of them leaves, and what each is given.
    """
    activations, logits = _of_a_batch(model, data)
    if again:
        layers, width = len(layers_of(model)), weight_of(sites_of(model)[0].output).shape[0]
        activations = activations // layers + 4 * layers * _tokens(data) * width
    return activations + 3 * logits


def _observing_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """The same where layers run again once they would leave much, and logits are made of some tokens at a time."""
    tokens, layers = _tokens(data), len(layers_of(model))
    left = left_by_layers(model, tokens)
    if left <= MOST_LEFT:
        activations, logits = _of_a_batch(model, data)
        return activations + _logits(model, logits)
    width = weight_of(sites_of(model)[0].output).shape[0]
    between = layers * runs_of(model) * tokens * width * next(model.parameters()).element_size()
    return between + 2 * left // layers + _logits(model, 4 * tokens * unwrap(model).config.vocab_size)


def forward_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes of a forward pass of the longest batch: what one layer leaves, and thrice the logits that are made."""
    tokens = _tokens(data)
    known = is_language_model(model)
    logits = 4 * tokens * unwrap(model).config.vocab_size if known else _of_a_batch(model, data)[1]
    return left_by_layers(model, tokens) // len(layers_of(model)) + _logits(model, logits)


def _logits(model: nn.Module, whole: int) -> int:
    """Thrice as many bytes as logits in float32 take, `whole` those of a batch."""
    if is_language_model(model):
        whole = min(whole, 4 * max(AT_ONCE, FEWEST * unwrap(model).config.vocab_size))
    return 3 * whole


def _tokens(data: Sequence[Batch]) -> int:
    """Tokens of the longest batch, filled up."""
    return max(batch["input_ids"].numel() for batch in data)


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
