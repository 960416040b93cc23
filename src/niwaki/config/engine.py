"""Where a model runs, and in how many bits."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import DATA, check_above_zero, check_at_least, check_unused, option
from niwaki.errors import RequestError, check_choice

ROUNDINGS = {
    "pytorch": ("none",),
    "onnxruntime": ("none", "int8", "int8-static"),
    "openvino": ("none", "int8-static"),
    "llama.cpp": ("none", "f16", "q8_0", "q4_0", "q4_1"),
}
"""How an engine can hold weights; `none` is float32."""
ENGINES = tuple(ROUNDINGS)
QUANTIZATIONS = tuple(dict.fromkeys(name for names in ROUNDINGS.values() for name in names))
WRITTEN_FOR = {
    "onnx": "onnxruntime",
    "gguf": "llama.cpp",
    "openvino": "openvino",
    "merged": "pytorch",
    "remote-code": "pytorch",
}
"""The forms of export, and the engine of each."""
CALIBRATED = {"int8": False, "int8-static": True}
"""Roundings that may look at data, and whether they must."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """In how many bits weights are held, and what the rounding looks at."""

    quantize: str = option("none", f"Bits of the weights: {', '.join(QUANTIZATIONS)}, as the engine has them.")
    train_data: str | None = option(
        None,
        "Data that a rounding to int8 looks at; int8-static needs them, int8 then spares what costs too much.",
        DATA,
    )
    train_split: str | None = option(None, "Split of a Hub data set to take as --train-data; train by default.", DATA)
    calibration_samples: int = option(512, "Rows of --train-data that are looked at.", DATA)
    max_divergence: float = option(
        0.01,
        "Divergence from the float32 model (nats a prediction) on --train-data that int8 may cost; matrices stay in "
        "float32 until it does not.",
    )

    def check_rounding(self) -> None:
        """Refuse data that nothing looks at, and none where they are needed.

        Raises:
            RequestError: naming the field.
        """
        check_at_least(self, 1, "calibration_samples")
        check_above_zero(self, "max_divergence")
        if self.train_data is None and CALIBRATED.get(self.quantize, False):
            raise RequestError(
                f"train_data must be given with quantize {self.quantize}, whose scales it sets, got none"
            )
        if self.quantize not in CALIBRATED:
            check_unused(self, f"quantize {self.quantize}", "train_data")
        if self.train_data is None:
            check_unused(self, "no train_data", "train_split", "calibration_samples", "max_divergence")


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
