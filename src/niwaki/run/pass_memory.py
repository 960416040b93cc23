"""Bytes that a pass of a model takes, by what it is for: looking, training, measuring, timing.

Each is that of the longest batch. What one leaves for a backward pass is seen on one row of it, with what trains in
training mode; in a forward pass it is what one layer leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import (
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
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Structured
from niwaki.config.finetune import LORA_RANK
from niwaki.data import Batches, mean_length, token_mask, without_labels
from niwaki.data.batches import length_of
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch, frozen, to_device
from niwaki.observe.watch import MOST_LEFT

Trains = Structured | LayerAdaptive | DynamicSparsityTraining | Finetune

_PIECES = 6
"""What part of what a pass leaves is lost in pieces that were freed and fit nothing else."""

_TIMED, _PROMPTS = 32, 1024
"""Rows of the largest batch that is timed, and tokens of all of them at most where a language model reads them."""


def largest(data: Batches) -> list[Batch]:
    """The batch of the longest rows: none that these rows are put into is larger, and training has it each epoch."""
    rows = sorted(data.rows, key=length_of)[-data.batch_size :]
    return list(Batches(rows, data.tokenizer, data.batch_size))


def beside_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes of a pass of a model that another learns from: its hidden states, and how far from them the other's are."""
    states = 2 * 4 * _tokens(data) * _width(model) * (len(layers_of(model)) + 1)
    return forward_bytes(model, data) + states


def _backward(model: nn.Module, data: Sequence[Batch], left: tuple[int, int], again: bool) -> int:
    """Bytes of a pass and its way back, which `left` so many bytes, and so many of logits: these are there thrice.

    Of layers that run `again` what one of them leaves, and what each is given.
    """
    activations, logits = left
    if again:
        layers = len(layers_of(model))
        activations = activations // layers + 4 * layers * _tokens(data) * _width(model)
    return activations + 3 * logits


def training_bytes(model: nn.Module, data: Sequence[Batch], stage: Trains, dropout: bool) -> int:
    """Bytes of a pass that is trained on, and its way back, by what `stage` trains of the model.

    What LoRA looks at is what the weights beside it would: the inputs of their linears, of a model in half precision
    each once more in float32; and what is between its factors. Going back, the gradients of a layer lie beside it; and
    pieces that were freed are not all taken again.
    """
    linears, tokens = linears_of(model), _tokens(data)
    rank = getattr(stage, "lora_rank", LORA_RANK)
    factors = 4 * rank * len(linears)
    if next(model.parameters()).element_size() < 4:
        factors += 4 * sum(linear.shape[1] for linear in linears)
    activations, logits = _of_a_batch(model, data, dropout=dropout)
    left = (
        activations + activations // len(layers_of(model)) + activations // _PIECES + tokens * runs_of(model) * factors
    )
    return _backward(model, data, (left, logits), stage.gradient_checkpointing)


def _width(model: nn.Module) -> int:
    """Of what goes from layer to layer."""
    return weight_of(sites_of(model)[0].output).shape[0]


def observing_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes of a pass that is looked at, and its way back.

    Layers run again once they would leave much, and logits are made of some tokens at a time.
    """
    tokens, layers = _tokens(data), len(layers_of(model))
    left = left_by_layers(model, tokens)
    if left <= MOST_LEFT:
        activations, logits = _of_a_batch(model, data)
        return activations + activations // _PIECES + _logits(model, logits)
    between = layers * runs_of(model) * tokens * _width(model) * next(model.parameters()).element_size()
    return between + 2 * left // layers + _logits(model, 4 * tokens * unwrap(model).config.vocab_size)


def forward_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes of a forward pass of the longest batch: what one layer leaves, and thrice the logits that are made."""
    tokens = _tokens(data)
    known = is_language_model(model)
    logits = 4 * tokens * unwrap(model).config.vocab_size if known else _of_a_batch(model, data)[1]
    return left_by_layers(model, tokens) // len(layers_of(model)) + _logits(model, logits)


def timing_bytes(model: nn.Module, data: Sequence[Batch]) -> int:
    """Bytes of the passes that are timed at the mean length of `data`, of a dense and a pruned model in turn.

    Twice what one leaves: what is freed there is kept, in pieces that do not fit the other.
    """
    tokens = timed_tokens(model, max(1, round(mean_length(data))))
    return 2 * left_by_layers(model, tokens) // len(layers_of(model))


def timed_tokens(model: nn.Module, length: int) -> int:
    """Tokens of the largest batch that is timed at a length, see `niwaki.evaluate.latency`."""
    return max(length, min(_TIMED * length, _PROMPTS)) if is_language_model(model) else _TIMED * length


def _logits(model: nn.Module, whole: int) -> int:
    """Thrice as many bytes as logits in float32 take, `whole` those of a batch."""
    if is_language_model(model):
        whole = min(whole, 4 * max(AT_ONCE, FEWEST * unwrap(model).config.vocab_size))
    return 3 * whole


def _tokens(data: Sequence[Batch]) -> int:
    """Tokens of the longest batch, filled up."""
    return max(batch["input_ids"].numel() for batch in data)


def _of_a_batch(model: nn.Module, data: Sequence[Batch], dropout: bool | None = None) -> tuple[int, int]:
    """Bytes that the longest batch leaves for its backward pass, and those of its logits in float32.

    Weights are frozen; with `dropout` on or off, they learn.
    """
    batch = max(data, key=lambda each: each["input_ids"].shape[1])
    rows = max(len(each["input_ids"]) for each in data)
    with frozen(model, with_gradients=True) if dropout is None else _learning_mode(model, dropout) as device:
        one: dict[str, Any] = {key: value[:1] for key, value in without_labels(to_device(batch, device)).items()}
        with kept_for_backward(model) as kept:
            outputs = model(**one)  # held, so that no storage is used twice
    everything = torch.ones_like(token_mask(one)).bool()
    return rows * sum(kept.values()), rows * 4 * predictions_of(model, outputs, everything).values.numel()


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """While open, bytes of all that autograd keeps, by where it lies, weights aside. What is computed is to be held."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@contextmanager
def _learning_mode(model: nn.Module, dropout: bool) -> Iterator[torch.device]:
    """All weights require gradients, and dropout is on or off; model and random state are afterwards as they were."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with frozen(model, with_gradients=False) as device, seeded(0):
            for module in model.modules():
                module.training = dropout
            for parameter, _ in required:
                parameter.requires_grad_(parameter.is_floating_point())
            yield device
    finally:
        for parameter, needed in required:
            parameter.requires_grad_(needed)
