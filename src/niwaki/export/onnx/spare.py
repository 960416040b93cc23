"""Which matrices stay in float32: as few as keep what the model says close enough to what it said before.

The divergence of a rounded graph is measured in ONNX Runtime on calibration rows. Where rounding every matrix costs too
much, each is rounded alone; those that cost most alone stay, as many as it takes, found by bisection.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from niwaki.anatomy import Predictions, predictions_of
from niwaki.data import token_mask, without_labels
from niwaki.export.calibration import Calibration
from niwaki.export.onnx.graph import graph_of
from niwaki.export.onnx.quantize import Rounder, dynamic, matrices_of, static
from niwaki.export.onnx.session import Session

LOOKED_AT = 128
"""Rows that the divergence is measured on."""


def to_int8(
    model: PreTrainedModel, source: Path, target: Path, quantize: str, calibration: Calibration | None
) -> list[str]:
    """Write `target`, the graph `source` of `model` with weights in int8; names of the nodes left as they were.

    Without a `calibration` every matrix is rounded.
    """
    if calibration is None:
        dynamic(source)(target, matrices_of(source))
        return []
    batches = [without_labels(batch) for batch in calibration.batches]
    round_nodes = dynamic(source) if quantize == "int8" else static(source, graph_of(model), batches)
    return _round_within(calibration.most, source, target, round_nodes, _Divergence(model, source, batches))


class _Divergence:
    """How far what a graph says of some rows is from what the graph `exact` says, a prediction."""

    def __init__(self, model: PreTrainedModel, exact: Path, batches: Sequence[dict[str, Tensor]]) -> None:
        self._model, self._graph = model, graph_of(model)
        self._batches = _first(batches, LOOKED_AT)
        self._wanted = list(self._said(exact))

    def of(self, file: Path) -> float:
        """The mean over predictions."""
        apart, count = 0.0, 0
        for found, wanted in zip(self._said(file), self._wanted, strict=True):
            apart += float(found.divergence_from(wanted).double().sum())
            count += len(found.values)
        return apart / count

    def _said(self, file: Path) -> Iterator[Predictions]:
        forward = self._graph.forward_by(Session(file))
        for batch in self._batches:
            yield predictions_of(self._model, forward(**batch), token_mask(batch).bool()).float()


def _round_within(most: float, source: Path, target: Path, round_nodes: Rounder, apart: _Divergence) -> list[str]:
    nodes = matrices_of(source)
    round_nodes(target, nodes)
    if apart.of(target) <= most:
        return []
    by_cost = _by_cost(nodes, round_nodes, apart)
    shutil.copy(source, target)
    few, enough = 0, len(nodes)
    with tempfile.TemporaryDirectory() as place:
        trial = Path(place) / "trial.onnx"
        while enough - few > 1:
            count = (few + enough) // 2
            round_nodes(trial, by_cost[count:])
            if apart.of(trial) <= most:
                enough = count
                shutil.move(trial, target)
            else:
                few = count
    return by_cost[:enough]


def _by_cost(nodes: list[str], round_nodes: Rounder, apart: _Divergence) -> list[str]:
    """The nodes, first those that make the graph diverge most where they alone are rounded."""
    alone = {}
    with tempfile.TemporaryDirectory() as place:
        trial = Path(place) / "trial.onnx"
        for node in nodes:
            round_nodes(trial, [node])
            alone[node] = apart.of(trial)
    return sorted(nodes, key=lambda node: -alone[node])


def _first(batches: Sequence[dict[str, Tensor]], rows: int) -> list[dict[str, Tensor]]:
    """The first batches that hold so many rows, the last of them cut."""
    found = []
    for batch in batches:
        if rows <= 0:
            break
        found.append({name: value[:rows] for name, value in batch.items()})
        rows -= len(batch["input_ids"])
    return found
