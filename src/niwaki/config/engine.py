"""Where a model runs, and in how many bits."""

from __future__ import annotations

from niwaki.errors import RequestError, check_choice

ROUNDINGS = {
    "pytorch": ("none",),
    "onnxruntime": ("none", "int8"),
    "llama.cpp": ("none", "f16", "q8_0", "q4_0", "q4_1"),
}
"""How an engine can hold weights; `none` is float32."""
ENGINES = tuple(ROUNDINGS)
QUANTIZATIONS = tuple(dict.fromkeys(name for names in ROUNDINGS.values() for name in names))
WRITTEN_FOR = {"onnx": "onnxruntime", "gguf": "llama.cpp", "merged": "pytorch", "remote-code": "pytorch"}
"""The forms of export, and the engine of each."""


def check_engine(engine: str, quantize: str) -> None:
    """Refuse an engine that is not known, and bits that it has not.

    Raises:
        RequestError: with the choices.
    """
    check_choice("engine", engine, ENGINES)
    _check(f"engine {engine}", ROUNDINGS[engine], quantize)


def check_quantization(to: str, quantize: str) -> None:
    """Refuse a form of export that is not known, and bits that its engine has not.

    Raises:
        RequestError: with the choices.
    """
    check_choice("to", to, WRITTEN_FOR)
    _check(f"to {to}", ROUNDINGS[WRITTEN_FOR[to]], quantize)


def _check(where: str, has: tuple[str, ...], quantize: str) -> None:
    check_choice("quantize", quantize, QUANTIZATIONS)
    if quantize not in has:
        others = [engine for engine, names in ROUNDINGS.items() if quantize in names]
        rule = f"quantize must be {' or '.join(has)} for {where}"
        raise RequestError(f"{rule}, got {quantize!r}; engine {' and '.join(others)} has it")
