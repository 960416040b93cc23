"""int8 for ONNX Runtime: weights rounded per output, activations as they come, by its own quantiser.

What is rounded is every matrix that multiplies, and the embeddings. Weights are symmetric: a zero stays a zero.
"""

from __future__ import annotations

from pathlib import Path

import torch

from niwaki.export.onnx.silence import silent

KINDS = ("MatMul", "Gemm", "Gather")
"""Operators that read a weight."""


def saturates() -> bool:
    """Whether sums of int8 products overflow on this processor (no VNNI), so that a weight may have 7 bits alone."""
    return not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def to_int8(source: Path, target: Path) -> None:
    """Write `target`, the graph of `source` with weights in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silent():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(KINDS),
            per_channel=True,
            reduce_range=saturates(),
            weight_type=QuantType.QInt8,
        )
