"""A model whose forward pass is ONNX Runtime's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from niwaki.checkpoint import merged
from niwaki.export.onnx import PACKAGES, export_onnx
from niwaki.export.onnx.graph import CachedGraph, Graph, graph_of
from niwaki.export.onnx.session import Run, session_of
from niwaki.export.packages import check_installed


def in_onnxruntime(model: nn.Module, tokenizer: Any = None, quantize: str = "none") -> tuple[PreTrainedModel, int]:
    """A model like `model` that runs in ONNX Runtime, on as many threads as PyTorch has, and the bytes of its file.

    It has the configuration and the weights of `model`, with adapters merged; what it gives is what the graph gives.

    Raises:
        RequestError, WorkError: see `niwaki.export.onnx.export_onnx`.
    """
    check_installed("engine onnxruntime", PACKAGES, "onnx")
    there = copy.deepcopy(merged(model)).float().cpu()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        export_onnx(there, file, tokenizer, quantize=quantize)
        size, run = file.stat().st_size, session_of(file)
    graph = graph_of(there)
    cast(Any, there).forward = _going_on(graph, run) if isinstance(graph, CachedGraph) else _reading(graph, run)
    return there, size


def _reading(graph: Graph, run: Run) -> Callable[..., ModelOutput]:
    """The forward pass of a model that reads a text as a whole."""

    def forward(**batch: Tensor) -> ModelOutput:
        ids = batch["input_ids"]
        inputs = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
        return ModelOutput(dict(zip(graph.outputs, run(inputs), strict=True)))

    return forward


def _going_on(graph: CachedGraph, run: Run) -> Callable[..., ModelOutput]:
    """The forward pass of a language model; `past_key_values` are the mask so far, and keys and values by name."""

    def forward(
        input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **unused: Any
    ) -> ModelOutput:
        del unused
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        past = graph.start(len(input_ids))
        if past_key_values is not None:
            before, past = past_key_values
            mask = mask if mask.shape[1] > input_ids.shape[1] else torch.cat([before, mask], 1)
        logits, *present = run(graph.next_inputs(input_ids, mask, past))
        return ModelOutput(logits=logits, past_key_values=(mask, dict(zip(past, present, strict=True))))

    return forward
