"""ONNX: one file, checked with onnxruntime on padded batches before it takes its name."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import remove_masks_
from niwaki.anatomy import check_task, pooling_of, unwrap
from niwaki.checkpoint import SentenceHead, forget_, merged, write_tokenizer
from niwaki.config.engine import check_quantization
from niwaki.errors import RequestError
from niwaki.export.calibration import Calibration
from niwaki.export.destination import SingleFile, place_of
from niwaki.export.onnx.check import check_exact, check_finite, padded_batches
from niwaki.export.onnx.fuse import fuse
from niwaki.export.onnx.graph import graph_of
from niwaki.export.onnx.quantize import saturates
from niwaki.export.onnx.session import Session
from niwaki.export.onnx.spare import to_int8
from niwaki.export.onnx.write import MARK, write_graph
from niwaki.export.packages import check_installed

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
NO_GRAPH = {"llama4_text": "whose rotations are complex numbers, which torch's exporter has not"}
"""Types of models that have no graph, and why."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    tokenizer: Any = None,
    overwrite: bool = False,
    quantize: str = "none",
    optimize: bool = False,
    calibration: Calibration | None = None,
) -> list[str]:
    """Write an ONNX model: `input_ids`, `attention_mask` (`token_type_ids` where there are segments) -> what it says.

    All inputs are int64 `[batch, sequence]`, both free; `[batch, choices, sequence]` where a model chooses among texts.
    Outputs are float32 and called as in Transformers: `logits`; `start_logits` and `end_logits`; `last_hidden_state`. A
    language model has `position_ids` and `past_key_values.0.key` ... too, and gives `present.0.key` ...: see
    `niwaki.export.onnx.graph.CachedGraph`. A `path` that ends in `.onnx` is that one file; else a folder with
    `onnx/model.onnx`, `config.json`, the tokenizer and what makes a sentence encoder: what Optimum, Transformers.js
    and Sentence Transformers read. The file is run by onnxruntime on padded batches of several shapes before it takes
    its name. Attention is one node, where the model lets it be.

    With `quantize` int8 weights are rounded to int8, per output, and activations as they come; with int8-static these
    have scales that a `calibration` sets: see `niwaki.export.onnx.quantize`. Where there is one, matrices that would
    cost too much stay in float32, see `niwaki.export.onnx.spare`: the names of their nodes are returned. In a folder
    the file is called `model_quantized.onnx`, that of a sentence encoder `model_qint8_avx2.onnx` or
    `model_qint8_avx512_vnni.onnx`. With `optimize` the graph is written as ONNX Runtime rewrites it: fused, and for
    ONNX Runtime alone.

    Raises:
        RequestError: the packages of `niwaki[onnx]` are missing; `path` exists (with `overwrite`: and is not what
            Niwaki wrote); the model is too large for one file, or has no graph; int8-static without a `calibration`.
        WorkError: logits that differ from PyTorch's by more than `niwaki.export.onnx.check.TOLERANCE`, or that are
            not finite in int8.
    """
    with place_of(path, overwrite, SINGLE) as place:
        return fill_onnx(model, place, tokenizer, quantize, optimize, calibration)


def fill_onnx(
    model: nn.Module,
    place: Path,
    tokenizer: Any = None,
    quantize: str = "none",
    optimize: bool = False,
    calibration: Calibration | None = None,
) -> list[str]:
    """Write what `export_onnx` does into `place`, a folder that is there or the name of a file."""
    check_installed("to onnx", PACKAGES, "onnx")
    check_quantization("onnx", quantize)
    plain = plain_of(model, "onnx")
    if place.suffix == SINGLE.suffix:
        return write_onnx(plain, place, tokenizer, quantize, optimize, calibration)
    (place / "onnx").mkdir()
    spared = write_onnx(plain, place / "onnx" / _name(plain, quantize), tokenizer, quantize, optimize, calibration)
    write_beside(plain, place, tokenizer)
    return spared


def plain_of(model: nn.Module, to: str) -> PreTrainedModel:
    """A copy of `model` in float32 on the processor, without adapters and masks, that is to be a graph for `to`.

    Raises:
        RequestError: it has no task, or no graph.
    """
    kind = unwrap(model).config.model_type
    if kind in NO_GRAPH:
        rule = f"to must be merged or remote-code for a {kind} model, {NO_GRAPH[kind]}"
        raise RequestError(f"{rule}, got {to!r}")
    plain = copy.deepcopy(merged(model)).eval().cpu().float()
    remove_masks_(plain)
    check_task(plain)
    return plain


def write_beside(plain: PreTrainedModel, folder: Path, tokenizer: Any) -> None:
    """Write what a graph in `folder` is read with: the configuration, the tokenizer, what makes a sentence encoder."""
    forget_(plain.config)
    plain.config.save_pretrained(folder)
    if plain.can_generate() and plain.generation_config is not None:
        plain.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)
    if isinstance(beside := pooling_of(plain), SentenceHead):
        beside.write(folder)


def write_onnx(
    plain: PreTrainedModel,
    file: Path,
    tokenizer: Any,
    quantize: str = "none",
    optimize: bool = False,
    calibration: Calibration | None = None,
) -> list[str]:
    """Write the graph of a plain model to `file`, see `export_onnx`; the nodes that were not rounded."""
    if quantize == "int8-static" and calibration is None:
        raise RequestError("calibration must be given with quantize int8-static, whose scales it sets, got none")
    spared: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        exact, rounded, fused = (Path(place) / f"{name}.onnx" for name in ("exact", "rounded", "fused"))
        write_graph(plain, exact, tokenizer)
        found = exact
        if quantize != "none":
            spared, found = to_int8(plain, exact, rounded, quantize, calibration), rounded
        if optimize:
            fuse(found, fused)
            found = fused
        shutil.move(found, file)
    if quantize != "none":
        check_finite(plain, Session(file), tokenizer, quantize)
    elif optimize:
        check_exact(graph_of(plain), Session(file), padded_batches(plain, tokenizer))
    return spared


def _name(plain: PreTrainedModel, quantize: str) -> str:
    """The name of a graph in a folder, by which others find it."""
    if quantize == "none":
        return "model.onnx"
    if isinstance(pooling_of(plain), SentenceHead):
        return f"model_qint8_{'avx2' if saturates() else 'avx512_vnni'}.onnx"
    return "model_quantized.onnx"


def _is_ours(file: Path) -> bool:
    """Whether a file is an ONNX model that Niwaki wrote."""
    try:
        import onnx

        found = onnx.load(str(file), load_external_data=False)
    except Exception:  # whatever it is, and whatever protobuf says of it
        return False
    return any(entry.key == MARK for entry in found.metadata_props)


SINGLE = SingleFile(".onnx", "an ONNX model", _is_ours)
