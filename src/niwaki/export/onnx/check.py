"""Batches to try an exported graph on, and what ONNX Runtime makes of them, against PyTorch."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from niwaki.anatomy import longest_input, supported_task
from niwaki.errors import WorkError
from niwaki.export.onnx.graph import CachedGraph, Graph, Run, graph_of

TOLERANCE = 1e-4
"""Largest difference of a logit between onnxruntime and PyTorch."""
_CHECKED = ((1, 5), (1, 16), (2, 11), (5, 24), (8, 32))


def check_exact(graph: Graph | CachedGraph, run: Run, batches: list[dict[str, Tensor]], engine: str = "onnx") -> None:
    """Refuse a graph that, as `run` has it, does not compute what PyTorch does.

    Raises:
        WorkError: with the largest difference, and where it is.
    """
    worst, where = 0.0, (0, 0)
    for batch in batches:
        with torch.no_grad():
            pairs = list(zip(graph.found(run, batch), graph.expected(batch), strict=True))
        difference = max(float((found - wanted).abs().max()) for found, wanted in pairs)
        if not difference <= worst:  # not a number is the worst
            worst, where = difference, tuple(batch["input_ids"].shape)
    if not worst <= TOLERANCE:
        rule = f"{engine}: logits must be within {TOLERANCE:g} of PyTorch's"
        raise WorkError(f"{rule}, got a difference of {worst:.3g} at batch {where[0]}, length {where[1]}")


def check_finite(model: PreTrainedModel, run: Run, tokenizer: Any, quantize: str) -> None:
    """Refuse a rounded graph that gives what is no number.

    Raises:
        WorkError: it does.
    """
    graph = graph_of(model)
    for batch in padded_batches(model, tokenizer):
        if not all(bool(values.isfinite().all()) for values in graph.found(run, batch)):
            raise WorkError(f"onnx: what the model gives in {quantize} is not finite")


def padded_batches(model: PreTrainedModel, tokenizer: Any) -> list[dict[str, Tensor]]:
    """Random tokens `[batch, length]` of several shapes; every row but the first is padded on the right.

    No token of a row is the padding id, by which some models count positions, and others find the end of a row.
    """
    config, longest = cast(Any, model.config), longest_input(model)
    generator = torch.Generator().manual_seed(0)
    padding = _padding(model)
    words = [token for token in range(config.vocab_size) if token != padding]
    words = torch.tensor(words[min(5, len(words) - 1) :])
    batches = []
    for rows, length in _CHECKED:
        length = min(length, longest)
        ids = words[torch.randint(len(words), (rows, length), generator=generator)]
        lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
        lengths[0] = length
        mask = (torch.arange(length)[None] < lengths).long()
        batch = {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}
        if _has_segments(model, tokenizer):
            batch["token_type_ids"] = (torch.arange(length)[None] >= lengths // 2).long() * mask
        if supported_task(model).labels == "choice":  # each row twice
            batch = {name: value[:, None].repeat(1, 2, 1) for name, value in batch.items()}
        batches.append(batch)
    return batches


def _padding(model: PreTrainedModel) -> int:
    """The padding id of the model's config; 0 where it has none, or one that is not in its vocabulary."""
    padding = cast(Any, model.config).pad_token_id
    return padding if padding is not None and 0 <= padding < cast(Any, model.config).vocab_size else 0


def _has_segments(model: PreTrainedModel, tokenizer: Any) -> bool:
    """Whether the model tells a second segment from the first, and its tokenizer says which tokens are in it."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    several = int(getattr(model.config, "type_vocab_size", 1)) > 1
    return several and (tokenizer is None or "token_type_ids" in tokenizer.model_input_names)
