"""A model whose forward pass is OpenVINO's, so that whatever measures a model measures it there."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from niwaki.checkpoint import merged
from niwaki.export.calibration import Calibration
from niwaki.export.onnx.engine import run_by_graph
from niwaki.export.openvino import PACKAGES, export_openvino
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
    spared = export_openvino(there, folder, quantize=quantize, calibration=calibration, tokenizer=tokenizer)
    (file,) = (folder / "openvino").glob("*.xml")
    return run_by_graph(there, file, Session(file), spared)
