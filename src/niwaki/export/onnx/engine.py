"""A model whose forward pass is ONNX Runtime's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from niwaki.checkpoint import merged
from niwaki.export.onnx import PACKAGES, export_onnx
from niwaki.export.packages import check_installed


def in_onnxruntime(model: nn.Module, tokenizer: Any = None, quantize: str = "none") -> tuple[PreTrainedModel, int]:
    """A model like `model` that runs in ONNX Runtime, on as many threads as PyTorch has, and the bytes of its file.

    It has the configuration and the weights of `model`, with adapters merged; what it gives is what the graph gives.

    Raises:
        RequestError, WorkError: see `niwaki.export.onnx.export_onnx`.
    """
    check_installed("engine onnxruntime", PACKAGES, "onnx")
    import onnxruntime

    there = copy.deepcopy(merged(model)).float().cpu()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would slow what else is timed in turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        export_onnx(there, file, tokenizer, quantize=quantize)
        size = file.stat().st_size
        session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    inputs, outputs = ([put.name for put in puts] for puts in (session.get_inputs(), session.get_outputs()))

    def forward(**batch: Tensor) -> ModelOutput:
        ids = batch["input_ids"]
        known = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
        found = session.run(outputs, {name: known[name].numpy() for name in inputs})
        return ModelOutput({name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)})

    cast(Any, there).forward = forward
    return there, size
