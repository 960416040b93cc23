"""A model whose forward pass is ONNX Runtime's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from niwaki.checkpoint import merged
from niwaki.export.onnx import PACKAGES, export_onnx
from niwaki.export.onnx.graph import CachedGraph, Graph, graph_of
from niwaki.export.onnx.session import Session
from niwaki.export.packages import check_installed
from niwaki.export.placed import Placed, folder_of


def in_onnxruntime(model: nn.Module, tokenizer: Any = None, quantize: str = "none") -> Placed:
    """A model like `model` that runs in ONNX Runtime, on as many threads as PyTorch has.

    It has the configuration and the weights of `model`, with adapters merged; what it gives is what the graph gives.

    Raises:
        RequestError, WorkError: see `niwaki.export.onnx.export_onnx`.
    """
    check_installed("engine onnxruntime", PACKAGES, "onnx")
    there = copy.deepcopy(merged(model)).float().cpu()
    file = folder_of(there) / "model.onnx"
    export_onnx(there, file, tokenizer, quantize=quantize)
    graph, run = graph_of(there), Session(file)
    cast(Any, there).forward = _going_on(graph, run) if isinstance(graph, CachedGraph) else _reading(graph, run)
    return Placed(there, file)


def _reading(graph: Graph, run: Session) -> Callable[..., ModelOutput]:
    """The forward pass of a model that reads a text as a whole."""

    def forward(**batch: Tensor) -> ModelOutput:
        ids = batch["input_ids"]
        inputs = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
        return ModelOutput(dict(zip(graph.outputs, run(inputs), strict=True)))

    return forward


def _going_on(graph: CachedGraph, run: Session) -> Callable[..., ModelOutput]:
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
