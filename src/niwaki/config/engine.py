"""Where a model runs, and in how many bits."""

from __future__ import annotations

from niwaki.errors import RequestError, check_choice

ENGINES = ("pytorch", "onnxruntime")
QUANTIZATIONS = ("none", "int8")


def check_engine(engine: str, quantize: str) -> None:
    """Refuse an engine that is not known, and bits that it has not.

    Raises:
        RequestError: with the choices.
    """
    check_choice("engine", engine, ENGINES)
    check_choice("quantize", quantize, QUANTIZATIONS)
    if quantize != "none" and engine == "pytorch":
        raise RequestError(f"quantize must be none for engine pytorch, got {quantize!r}; engine onnxruntime has it")
