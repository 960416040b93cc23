"""The graph of a model: torch's exporter, attention as one node, checked against PyTorch before it is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from niwaki.anatomy import supported_task
from niwaki.errors import RequestError, WorkError
from niwaki.export.onnx.attention import attention_as_one_node
from niwaki.export.onnx.check import TOLERANCE, padded_batches, run
from niwaki.export.onnx.silence import silent

OPSET = 18
"""That of Optimum: what runs it need not be new."""
MARK = "niwaki"
"""Key among the metadata of a model that Niwaki wrote."""


class Graph(nn.Module):
    """The graph that is exported: its inputs by name, and of what the model gives that which its task is about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.names = model, supported_task(model).outputs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(found[name] for name in self.names)


def write_graph(model: PreTrainedModel, file: Path, tokenizer: Any) -> None:
    """Export `model`, in evaluation mode on the CPU, to `file`, and check it there."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size >= 2**31:  # the limit of a protobuf message
        raise RequestError(f"model must be below 2 GiB to be one ONNX file, got {size / 2**30:.1f} GiB")
    graph = Graph(model).eval()
    batches = padded_batches(model, tokenizer)
    example = batches[-1]
    try:
        with silent(), torch.no_grad(), attention_as_one_node(model):
            program = torch.onnx.export(
                graph,
                kwargs=example,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=list(example),
                output_names=list(graph.names),
                dynamic_shapes={name: dict(enumerate(_axes(value))) for name, value in example.items()},
            )
            cast(Any, program).model.metadata_props[MARK] = "1"
            cast(Any, program).save(str(file), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise WorkError(f"onnx: torch could not export this {model.config.model_type} model: {cause}") from error
    _check(graph, file, batches)


def _axes(ids: Tensor) -> tuple[str, ...]:
    return ("batch", "sequence") if ids.dim() == 2 else ("batch", "choices", "sequence")


def _check(graph: Graph, file: Path, batches: list[dict[str, Tensor]]) -> None:
    worst, where = 0.0, (0, 0)
    for batch, given in zip(batches, run(file, batches), strict=True):
        with torch.no_grad():
            expected = graph(**batch)
        difference = max(float((found - wanted).abs().max()) for found, wanted in zip(given, expected, strict=True))
        if not difference <= worst:  # not a number is the worst
            worst, where = difference, tuple(batch["input_ids"].shape)
    if not worst <= TOLERANCE:
        rule = f"onnx: logits must be within {TOLERANCE:g} of PyTorch's"
        raise WorkError(f"{rule}, got a difference of {worst:.3g} at batch {where[0]}, length {where[1]}")
