"""A graph as a file: torch's exporter, attention as one node, checked against PyTorch before it is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from niwaki.errors import RequestError, WorkError
from niwaki.export.onnx.attention import attention_as_one_node
from niwaki.export.onnx.check import check_exact, padded_batches
from niwaki.export.onnx.empty import empty_linears_as_biases
from niwaki.export.onnx.graph import graph_of
from niwaki.export.onnx.rewrite import rewrite_
from niwaki.export.onnx.session import Session
from niwaki.export.onnx.silence import silent

OPSET = 18
"""That of Optimum: what runs it need not be new."""
MARK = "niwaki"
"""Key among the metadata of a model that Niwaki wrote."""


def write_graph(model: PreTrainedModel, file: Path, tokenizer: Any) -> None:
    """Export `model`, in evaluation mode on the CPU, to `file`, and check it there."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size >= 2**31:  # the limit of a protobuf message
        raise RequestError(f"model must be below 2 GiB to be one ONNX file, got {size / 2**30:.1f} GiB")
    graph = graph_of(model)
    batches = padded_batches(model, tokenizer)
    example = graph.example(batches[-1])
    try:
        with silent(), torch.no_grad(), attention_as_one_node(model), empty_linears_as_biases(model):
            program = torch.onnx.export(
                graph,
                kwargs=example,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=graph.input_names(example),
                output_names=list(graph.outputs),
                dynamic_shapes=graph.axes(example),
            )
            made = cast(Any, program).model
            rewrite_(made.graph)
            made.metadata_props[MARK] = "1"
            cast(Any, program).save(str(file), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise WorkError(f"onnx: torch could not export this {model.config.model_type} model: {cause}") from error
    check_exact(graph, Session(file), batches)
