"""A graph in OpenVINO, on the processor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class Session:
    """The graph in `file`, on as many threads as PyTorch has; called with inputs by name it gives outputs in order.

    It computes in float32 even where the processor has bfloat16, which OpenVINO takes by itself.
    """

    def __init__(self, file: Path) -> None:
        import openvino

        how = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(file, "CPU", how)

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        given = {put.any_name: inputs[put.any_name].contiguous().numpy() for put in self._compiled.inputs}
        found = self._compiled(given)
        return [torch.from_numpy(found[number].copy()) for number in range(len(self._compiled.outputs))]

    def read_row(self, length: int) -> None:
        """Run a row of so many tokens, whatever the inputs are."""
        self({put.any_name: torch.ones([1] * (put.partial_shape.rank.get_length() - 1) + [length], dtype=torch.long)
              for put in self._compiled.inputs})  # fmt: skip
