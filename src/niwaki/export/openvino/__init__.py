"""OpenVINO: a graph in its own form, checked there before it takes its name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from niwaki.anatomy import is_language_model, pooling_of
from niwaki.checkpoint import SentenceHead
from niwaki.config.engine import check_quantization
from niwaki.errors import RequestError
from niwaki.export.calibration import Calibration
from niwaki.export.destination import place_of
from niwaki.export.onnx import PACKAGES as TO_ONNX
from niwaki.export.onnx import plain_of, write_beside, write_onnx
from niwaki.export.onnx.check import check_exact, check_finite, padded_batches
from niwaki.export.onnx.graph import graph_of
from niwaki.export.openvino.session import Session
from niwaki.export.packages import check_installed

PACKAGES = ("openvino", *TO_ONNX)


def export_openvino(
    model: nn.Module,
    path: str | Path,
    tokenizer: Any = None,
    overwrite: bool = False,
    quantize: str = "none",
    calibration: Calibration | None = None,
) -> list[str]:
    """Write a folder with `openvino/openvino_model.xml` and `.bin`, `config.json` and the tokenizer; no language model.

    It is what Sentence Transformers and Optimum Intel read. Inputs and outputs are those of
    `niwaki.export.export_onnx`, whose graph is what OpenVINO reads. Weights are in float32, or with `quantize`
    int8-static in int8 as that graph has them: returned are the nodes that stay in float32, and a sentence encoder is
    called `openvino_model_qint8_quantized.xml`.

    Raises:
        RequestError: the packages of `niwaki[openvino]` are missing; a language model, which keeps its cache inside the
            graph there; else as `export_onnx`.
        WorkError: as `export_onnx`.
    """
    with place_of(path, overwrite) as folder:
        return fill_openvino(model, folder, tokenizer, quantize, calibration)


def fill_openvino(
    model: nn.Module,
    folder: Path,
    tokenizer: Any = None,
    quantize: str = "none",
    calibration: Calibration | None = None,
) -> list[str]:
    """Write what `export_openvino` does into a folder that is there."""
    check_installed("to openvino", PACKAGES, "openvino")
    check_quantization("openvino", quantize)
    if is_language_model(model):
        raise RequestError("to must be onnx, gguf, merged or remote-code for a language model, got 'openvino'")
    plain = plain_of(model, "openvino")
    (folder / "openvino").mkdir()
    spared = _write(plain, folder / "openvino" / _name(plain, quantize), tokenizer, quantize, calibration)
    write_beside(plain, folder, tokenizer)
    return spared


def _write(
    plain: PreTrainedModel, file: Path, tokenizer: Any, quantize: str, calibration: Calibration | None
) -> list[str]:
    import openvino

    with tempfile.TemporaryDirectory() as place:
        graph = Path(place) / "model.onnx"
        spared = write_onnx(plain, graph, tokenizer, quantize, calibration=calibration)
        openvino.save_model(openvino.Core().read_model(graph), file, compress_to_fp16=False)
    run = Session(file)
    if quantize != "none":
        check_finite(plain, run, tokenizer, quantize)
    else:
        check_exact(graph_of(plain), run, padded_batches(plain, tokenizer), "openvino")
    return spared


def _name(plain: PreTrainedModel, quantize: str) -> str:
    """The name of a graph, by which others find it."""
    rounded = quantize != "none" and isinstance(pooling_of(plain), SentenceHead)
    return "openvino_model_qint8_quantized.xml" if rounded else "openvino_model.xml"
