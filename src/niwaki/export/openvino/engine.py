"""A model whose forward pass is OpenVINO's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from niwaki.checkpoint import merged
from niwaki.export.calibration import Calibration
from niwaki.export.onnx.engine import run_by_graph
from niwaki.export.openvino import PACKAGES, fill_openvino
from niwaki.export.openvino.session import Session
from niwaki.export.packages import check_installed
from niwaki.export.placed import Placed, folder_of


def in_openvino(
    model: nn.Module, tokenizer: Any = None, quantize: str = "none", calibration: Calibration | None = None
) -> Placed:
    """A model like `model` that runs in OpenVINO in float32, on as many threads as PyTorch has.

    It has the configuration and the weights of `model`, with adapters merged; what it gives is what the graph gives.

    Raises:
        RequestError, WorkError: see `niwaki.export.openvino.export_openvino`.
    """
    check_installed("engine openvino", PACKAGES, "openvino")
    there = copy.deepcopy(merged(model)).float().cpu()
    folder = folder_of(there)
    return _placed(there, folder, fill_openvino(there, folder, tokenizer, quantize, calibration))


def of_openvino(model: nn.Module, place: Path, spared: list[str]) -> Placed:
    """The same of what `fill_openvino` wrote of `model` into the folder `place`."""
    return _placed(copy.deepcopy(merged(model)).float().cpu(), place, spared)


def _placed(there: PreTrainedModel, folder: Path, spared: list[str]) -> Placed:
    (file,) = (folder / "openvino").glob("*.xml")
    return run_by_graph(there, file, Session(file), spared)
