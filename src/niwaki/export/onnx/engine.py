"""A model whose forward pass is ONNX Runtime's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from niwaki.checkpoint import merged
from niwaki.export.calibration import Calibration
from niwaki.export.onnx import PACKAGES, fill_onnx
from niwaki.export.onnx.graph import Run, graph_of
from niwaki.export.onnx.session import Session
from niwaki.export.packages import check_installed
from niwaki.export.placed import Placed, folder_of


def in_onnxruntime(
    model: nn.Module, tokenizer: Any = None, quantize: str = "none", calibration: Calibration | None = None
) -> Placed:
    """A model like `model` that runs in ONNX Runtime, on as many threads as PyTorch has.

    It has the configuration and the weights of `model`, with adapters merged; what it gives is what the graph gives.

    Raises:
        RequestError, WorkError: see `niwaki.export.onnx.export_onnx`.
    """
    check_installed("engine onnxruntime", PACKAGES, "onnx")
    there = copy.deepcopy(merged(model)).float().cpu()
    file = folder_of(there) / "model.onnx"
    spared = fill_onnx(there, file, tokenizer, quantize, calibration=calibration)
    return run_by_graph(there, file, Session(file), spared)


def of_onnx(model: nn.Module, place: Path, spared: list[str]) -> Placed:
    """The same of what `fill_onnx` wrote of `model` into `place`."""
    file = place if place.is_file() else next((place / "onnx").glob("*.onnx"))
    return run_by_graph(copy.deepcopy(merged(model)).float().cpu(), file, Session(file), spared)


def run_by_graph(there: PreTrainedModel, file: Path, run: Run, spared: list[str]) -> Placed:
    """`there`, from now on with the forward pass of an engine that runs the graph in `file`."""
    cast(Any, there).forward = graph_of(there).forward_by(run)
    return Placed(there, file, len(spared))
