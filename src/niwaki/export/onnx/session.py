"""A graph in ONNX Runtime, on the processor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class Session:
    """The graph in `file`, on as many threads as PyTorch has; called with inputs by name it gives outputs in order."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while they wait would slow what else is timed in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        # An input that nothing depends on (the keys of a layer without heads) is none of the graph's.
        given = {put.name: inputs[put.name].contiguous().numpy() for put in self._session.get_inputs()}
        return [torch.from_numpy(found) for found in self._session.run(None, given)]

    def read_row(self, length: int) -> None:
        """Run a row of so many tokens, whatever the inputs are."""
        rows = {}
        for put in self._session.get_inputs():
            if put.name.startswith("past_key_values"):
                rows[put.name] = torch.zeros(1, put.shape[1], 0, put.shape[3])
            else:
                rows[put.name] = torch.ones([1] * (len(put.shape) - 1) + [length], dtype=torch.long)
        self(rows)
