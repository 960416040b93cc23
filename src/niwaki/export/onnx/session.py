"""A graph in ONNX Runtime, on the processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Run = Callable[[dict[str, Tensor]], list[Tensor]]
"""What an engine makes of inputs by name: the outputs in the order of the graph."""


def session_of(file: Path) -> Run:
    """The graph in `file`, read whole, on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would slow what else is timed in turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    # An input that nothing depends on (the keys of a layer without heads) is none of the graph's.
    known = [put.name for put in session.get_inputs()]

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: inputs[name].contiguous().numpy() for name in known})
        return [torch.from_numpy(values) for values in found]

    return run
