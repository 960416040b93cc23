"""ONNX: one file, checked with onnxruntime on padded batches before it takes its name."""

from __future__ import annotations

import copy
import itertools
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import remove_masks_
from niwaki.anatomy import check_task, is_language_model, pooling_of, unwrap
from niwaki.checkpoint import SentenceHead, forget_, merged
from niwaki.checkpoint.folder import atomic_file, atomic_folder
from niwaki.config.engine import check_quantization
from niwaki.errors import RequestError
from niwaki.export.onnx.check import check_exact, check_finite, padded_batches
from niwaki.export.onnx.fuse import fuse
from niwaki.export.onnx.graph import graph_of
from niwaki.export.onnx.quantize import saturates, to_int8
from niwaki.export.onnx.write import MARK, write_graph
from niwaki.export.packages import check_installed

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_NO_CACHE = {"llama4_text": "whose rotations are complex numbers, which torch's exporter has not"}
"""Types of language models that have no graph, and why."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    tokenizer: Any = None,
    overwrite: bool = False,
    quantize: str = "none",
    optimize: bool = False,
) -> None:
    """Write an ONNX model: `input_ids`, `attention_mask` (`token_type_ids` where there are segments) -> what it says.

    All inputs are int64 `[batch, sequence]`, both free; `[batch, choices, sequence]` where a model chooses among texts.
    Outputs are float32 and called as in Transformers: `logits`; `start_logits` and `end_logits`; `last_hidden_state`. A
    language model has `position_ids` and `past_key_values.0.key` ... too, and gives `present.0.key` ...: see
    `niwaki.export.onnx.graph.CachedGraph`. A `path` that ends in `.onnx` is that one file; else a folder with
    `onnx/model.onnx`, `config.json`, the tokenizer and what makes a sentence encoder: what Optimum, Transformers.js
    and Sentence Transformers read. The file is run by onnxruntime on padded batches of several shapes before it takes
    its name. Attention is one node, where the model lets it be. With `quantize` int8 weights are rounded to int8, per
    output, and activations as they come, see `niwaki.export.onnx.quantize`; in a folder the file is called
    `model_quantized.onnx`, that of a sentence encoder `model_qint8_avx2.onnx` or `model_qint8_avx512_vnni.onnx`. With
    `optimize` the graph is written as ONNX Runtime rewrites it: fused, and for ONNX Runtime alone.

    Raises:
        RequestError: the packages of `niwaki[onnx]` are missing; `path` exists (with `overwrite`: and is not what
            Niwaki wrote); the model is too large for one file, or has no graph.
        WorkError: logits that differ from PyTorch's by more than `niwaki.export.onnx.check.TOLERANCE`, or that are
            not finite in int8.
    """
    check_installed("to onnx", PACKAGES, "onnx")
    check_quantization("onnx", quantize)
    kind = unwrap(model).config.model_type
    if is_language_model(model) and kind in _NO_CACHE:
        raise RequestError(
            f"to must be merged or remote-code for a {kind} language model, {_NO_CACHE[kind]}, got 'onnx'"
        )
    plain = copy.deepcopy(merged(model)).eval().cpu().float()
    remove_masks_(plain)
    check_task(plain)
    target = Path(path)
    if target.suffix != ".onnx":
        with atomic_folder(target, overwrite) as folder:
            (folder / "onnx").mkdir()
            _write(plain, folder / "onnx" / _name(plain, quantize), tokenizer, quantize, optimize)
            forget_(plain.config)
            plain.config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            if isinstance(beside := pooling_of(plain), SentenceHead):
                beside.write(folder)
        return
    with atomic_file(target, overwrite, _is_ours, "an ONNX model") as file:
        _write(plain, file, tokenizer, quantize, optimize)


def _name(plain: PreTrainedModel, quantize: str) -> str:
    """The name of a graph in a folder, by which others find it."""
    if quantize == "none":
        return "model.onnx"
    if isinstance(pooling_of(plain), SentenceHead):
        return f"model_qint8_{'avx2' if saturates() else 'avx512_vnni'}.onnx"
    return "model_quantized.onnx"


def _write(plain: PreTrainedModel, file: Path, tokenizer: Any, quantize: str, optimize: bool) -> None:
    steps = [to_int8] * (quantize != "none") + [fuse] * optimize
    with tempfile.TemporaryDirectory() as place:
        files = [*(Path(place) / f"{number}.onnx" for number in range(len(steps))), file]
        write_graph(plain, files[0], tokenizer)
        for step, (source, target) in zip(steps, itertools.pairwise(files), strict=True):
            step(source, target)
    if quantize != "none":
        check_finite(plain, file, tokenizer, quantize)
    elif optimize:
        check_exact(graph_of(plain), file, padded_batches(plain, tokenizer))


def _is_ours(file: Path) -> bool:
    """Whether a file is an ONNX model that Niwaki wrote."""
    import onnx

    try:
        found = onnx.load(str(file), load_external_data=False)
    except Exception:  # whatever it is, and whatever protobuf says of it
        return False
    return any(entry.key == MARK for entry in found.metadata_props)
