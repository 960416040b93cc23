"""A pruned model for those who do not have Niwaki: ONNX, OpenVINO, GGUF, merged, with the code that it needs.

Every export has the signature `(model, path, tokenizer, overwrite)`. `model` is a plain model or a `PeftModel`, whose
adapters are merged in a copy; `path` is the folder to write, new or empty, or with `overwrite` one that holds only what
Niwaki wrote (for ONNX and GGUF also the name of a file that ends in `.onnx` or `.gguf`). ONNX, OpenVINO and GGUF take
`quantize` too, the former two a `calibration`.
What is written takes its name at the end, whole, or not at all: what a form fills, a folder or one file, has a function
of its own.

An engine that is not PyTorch has one function, `(model, tokenizer, quantize, calibration)` -> `Placed`, a model that
runs there: whatever measures a model measures it there. Another one runs what an export wrote.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from niwaki.export import gguf, onnx, openvino
from niwaki.export.calibration import Calibration
from niwaki.export.gguf import export_gguf, fill_gguf
from niwaki.export.gguf.engine import in_llama_cpp, of_gguf
from niwaki.export.merged import export_merged, fill_merged
from niwaki.export.onnx import export_onnx, fill_onnx
from niwaki.export.onnx.engine import in_onnxruntime, of_onnx
from niwaki.export.openvino import export_openvino, fill_openvino
from niwaki.export.openvino.engine import in_openvino, of_openvino
from niwaki.export.packages import check_installed
from niwaki.export.remote_code import export_remote_code, fill_remote_code

EXPORTS = {
    "onnx": export_onnx,
    "gguf": export_gguf,
    "openvino": export_openvino,
    "merged": export_merged,
    "remote-code": export_remote_code,
}
FILLS: dict[str, Callable[..., list[str] | None]] = {
    "onnx": fill_onnx,
    "gguf": fill_gguf,
    "openvino": fill_openvino,
    "merged": fill_merged,
    "remote-code": fill_remote_code,
}
SINGLE_FILES = {"onnx": onnx.SINGLE, "gguf": gguf.SINGLE}
OF_EXPORT = {"onnx": of_onnx, "gguf": of_gguf, "openvino": of_openvino}
IN_ENGINE = {"onnxruntime": in_onnxruntime, "openvino": in_openvino, "llama.cpp": in_llama_cpp}

_NEEDS = {
    "onnxruntime": (onnx.PACKAGES, "onnx"),
    "openvino": (openvino.PACKAGES, "openvino"),
    "llama.cpp": (gguf.PACKAGES, "gguf"),
}
"""Engine -> what is to be installed, and the extra of Niwaki that brings it."""
_PACKAGE = {"pytorch": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino", "llama.cpp": "cyllama"}


def check_engine(engine: str) -> None:
    """Refuse an engine that is not installed.

    Raises:
        RequestError: naming what is missing.
    """
    if engine in _NEEDS:
        check_installed(f"engine {engine}", *_NEEDS[engine])


def in_engine(model: nn.Module, engine: str) -> nn.Module:
    """The model itself for PyTorch, else one like it, in float32, that runs in `engine`.

    Raises:
        RequestError, WorkError: the engine does not take it.
    """
    return model if engine == "pytorch" else IN_ENGINE[engine](model).model


def engine_version(engine: str) -> str:
    """The package that runs an engine, and its version, as `torch 2.13.0`; without, where it is not installed."""
    package = _PACKAGE[engine]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


__all__ = [
    "EXPORTS",
    "FILLS",
    "IN_ENGINE",
    "OF_EXPORT",
    "SINGLE_FILES",
    "Calibration",
    "check_engine",
    "engine_version",
    "export_gguf",
    "export_merged",
    "export_onnx",
    "export_openvino",
    "export_remote_code",
    "in_engine",
    "in_llama_cpp",
    "in_onnxruntime",
    "in_openvino",
]
