"""int8 by ONNX Runtime's quantiser: weights rounded per output, activations as they come or by fixed scales.

What is rounded is every matrix that multiplies, and the embeddings. Weights are symmetric: a zero stays a zero. With
`int8` each activation gets its scale as it comes; with `int8-static` the scales are the greatest and least values that
calibration rows gave, written into the graph as pairs of nodes that round and undo it (QDQ), which other engines read
too. A text is calibrated with alone, of a model that chooses among several too, so that padding never counts.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from niwaki.export.onnx.graph import CachedGraph, Graph
from niwaki.export.onnx.silence import silent

KINDS = ("MatMul", "Gemm", "Gather")
"""Operators that read a weight."""

Rounder = Callable[[Path, Sequence[str]], None]
"""Writes a file in which these nodes have weights in int8."""


def saturates() -> bool:
    """Whether sums of int8 products overflow on this processor (no VNNI), so that a weight may have 7 bits alone."""
    return not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def matrices_of(file: Path) -> list[str]:
    """Names of the nodes that read a weight of two dimensions."""
    import onnx

    graph = onnx.load(str(file)).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return [node.name for node in graph.node if node.op_type in KINDS and weights & set(node.input)]


def dynamic(source: Path) -> Rounder:
    """Rounds the graph of `source`; activations get their scales as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def round_nodes(target: Path, nodes: Sequence[str]) -> None:
        with silent():
            quantize_dynamic(
                source,
                target,
                nodes_to_quantize=list(nodes),
                op_types_to_quantize=list(KINDS),
                per_channel=True,
                reduce_range=saturates(),
                weight_type=QuantType.QInt8,
            )

    return round_nodes


def static(source: Path, graph: Graph | CachedGraph, batches: Iterable[dict[str, Tensor]]) -> Rounder:
    """Rounds the graph of `source`; the scales of activations are what the rows of `batches` made of them."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType, create_calibrator

    names = [put.name for put in onnx.load(str(source), load_external_data=False).graph.input]
    with silent(), tempfile.TemporaryDirectory() as place:
        calibrator = create_calibrator(
            source, list(KINDS), augmented_model_path=str(Path(place) / "seen.onnx"), extra_options={}
        )
        for batch in batches:  # it holds what the graph gave for all rows that it is handed at once
            calibrator.collect_data(cast(Any, _Texts(graph, batch, names)))
        ranges = calibrator.compute_data()

    def round_nodes(target: Path, nodes: Sequence[str]) -> None:
        with silent():
            quantizer = QDQQuantizer(
                onnx.shape_inference.infer_shapes(onnx.load(str(source))),
                per_channel=True,
                reduce_range=saturates(),
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=list(nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=list(KINDS),
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(target))

    return round_nodes


class _Texts:
    """The texts of a batch as the quantiser asks for them, one by one, without padding."""

    def __init__(self, graph: Graph | CachedGraph, batch: dict[str, Tensor], names: list[str]) -> None:
        self._inputs = (graph.inputs_of(text) for text in _texts_of(batch))
        self._names = names

    def get_next(self) -> dict[str, Any] | None:
        """The inputs of the next text by name; None after the last."""
        inputs = next(self._inputs, None)
        return None if inputs is None else {name: inputs[name].contiguous().numpy() for name in self._names}


def _texts_of(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Each text as a batch of its own, `[1, length]`; one of several in a row as `[1, 1, length]`."""
    shape = batch["attention_mask"].shape[:-1]
    for place in itertools.product(*map(range, shape)):
        real = batch["attention_mask"][place].bool()
        yield {name: value[place][real].view(*[1] * len(shape), -1) for name, value in batch.items()}
