"""GGUF: one file for llama.cpp and what is built on it, tried there before it takes its name."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import remove_masks_
from niwaki.anatomy import check_task, is_language_model
from niwaki.checkpoint import merged
from niwaki.config.engine import check_quantization
from niwaki.errors import RequestError
from niwaki.export.destination import SingleFile, place_of
from niwaki.export.gguf.architecture import architecture_of
from niwaki.export.gguf.check import check_exact, check_runs, text_to_try
from niwaki.export.gguf.write import MARK, check_rows, write_gguf
from niwaki.export.packages import check_installed

PACKAGES = ("gguf", "cyllama")


def export_gguf(
    model: nn.Module, path: str | Path, tokenizer: Any = None, overwrite: bool = False, quantize: str = "none"
) -> None:
    """Write a Llama-shaped language model as GGUF, architecture `llama` or, where layers differ, `deci`.

    A `path` that ends in `.gguf` is that one file; else a folder with `model-F32.gguf`, or as `quantize` says. Weights
    are in float32; f16, q8_0 (blocks of 32 share a scale), q4_0 and q4_1 (a scale, and a lowest value). A zero stays
    one in all but q4_1. What is in the file is run by llama.cpp on a text, as float32, before it takes its name, and
    once more as it was rounded.

    Raises:
        RequestError: the packages of `niwaki[gguf]` are missing; `path` exists (with `overwrite`: and is not what
            Niwaki wrote); a model, a tokenizer or a rounding that llama.cpp has no place for.
        WorkError: logits that differ from PyTorch's by more than `niwaki.export.gguf.check.TOLERANCE`, or that are
            not finite as rounded.
    """
    with place_of(path, overwrite, SINGLE) as place:
        fill_gguf(model, place, tokenizer, quantize)


def fill_gguf(model: nn.Module, place: Path, tokenizer: Any = None, quantize: str = "none") -> None:
    """Write what `export_gguf` does into `place`, a folder that is there or the name of a file."""
    check_installed("to gguf", PACKAGES, "gguf")
    check_quantization("gguf", quantize)
    plain = merged(model)
    check_task(plain)
    if not is_language_model(plain):
        raise RequestError("to must be onnx, merged or remote-code for a model that is no language model, got 'gguf'")
    plain = copy.deepcopy(plain).eval().cpu().float()
    remove_masks_(plain)
    named = "F32" if quantize == "none" else quantize.upper()
    _write(plain, place if place.suffix == SINGLE.suffix else place / f"model-{named}.gguf", tokenizer, quantize)


def _write(plain: PreTrainedModel, file: Path, tokenizer: Any, quantize: str) -> None:
    architecture = architecture_of(plain)
    check_rows(plain, architecture, quantize)
    ids = text_to_try(plain, tokenizer)
    if quantize == "none":
        write_gguf(plain, architecture, file, tokenizer)
        check_exact(plain, file, ids)
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        exact = Path(place) / "exact.gguf"
        write_gguf(plain, architecture, exact, tokenizer)
        check_exact(plain, exact, ids)
    write_gguf(plain, architecture, file, tokenizer, quantize)
    check_runs(file, ids, quantize)


def _is_ours(file: Path) -> bool:
    """Whether a file is a GGUF model that Niwaki wrote."""
    try:
        from gguf import GGUFReader

        return MARK in GGUFReader(file).fields
    except Exception:  # whatever it is, and whatever the reader says of it
        return False


SINGLE = SingleFile(".gguf", "a GGUF model", _is_ours)
