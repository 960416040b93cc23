"""Every export of every task that is not a classifier of rows; none takes a model for one of another task."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForPreTraining

import niwaki
from helpers_tasks import PAIRS, batches_of, model_of, said
from niwaki.anatomy import TAGGER, Task, sites_of
from niwaki.anatomy.task import BODY
from niwaki.export import EXPORTS, in_onnxruntime
from niwaki.surgery import cut_
from tiny import configs


def uneven(task: Task, family: str, layers: int):
    """A model whose layers have lost other numbers of units."""
    model = model_of(task, family, layers=layers)
    plan = {site.name: torch.arange(site.units - (0 if site.fixed else 1 + site.layer)) for site in sites_of(model)}
    cut_(model, plan)
    return model


@pytest.mark.parametrize("to", EXPORTS)
def test_a_model_of_another_task_is_refused(to, tmp_path):
    if to in ("onnx", "openvino"):
        pytest.importorskip(to)
        pytest.importorskip("onnxscript")
    model = AutoModelForPreTraining.from_config(configs()["bert"])
    with pytest.raises(niwaki.RequestError, match=f"ForSequenceClassification, .*, got {type(model).__name__}"):
        EXPORTS[to](model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def pairs_but(refused: str) -> list[Any]:
    """Those of `PAIRS` that an export takes; that it refuses the rest is tested for the language models."""
    return [pair for pair in PAIRS if pair.values[1] != refused]


@pytest.mark.parametrize(("task", "family"), pairs_but("gpt_neox"))
def test_remote_code_gives_the_same(task, family, tmp_path):
    model, batch = uneven(task, family, layers=2), batches_of(task, 1)[0]
    EXPORTS["remote-code"](copy.deepcopy(model), tmp_path / "a")
    loaded = task.auto.from_pretrained(tmp_path / "a", trust_remote_code=True).eval()
    assert type(loaded).__name__ == type(model).__name__
    torch.testing.assert_close(said(loaded, batch), said(model, batch), rtol=0, atol=1e-6)


def test_a_graph_with_complex_rotations_is_refused_whatever_the_task(tmp_path):
    with pytest.raises(niwaki.RequestError, match="llama4_text model, whose rotations are complex"):
        EXPORTS["onnx"](model_of(BODY, "llama4_text", layers=1), tmp_path / "a")


def test_onnx_may_give_anything_for_padding():
    """Through a window of 8 tokens the last places of a short row see padding alone."""
    pytest.importorskip("onnxscript")
    model, batch = model_of(TAGGER, "modernbert", layers=2), batches_of(TAGGER, 1, length=24)[0]
    found = said(in_onnxruntime(model).model, batch)
    torch.testing.assert_close(found, said(model, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("task", "family"), pairs_but("llama4_text"))
def test_onnx_gives_what_the_task_is_about(task, family, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    # One layer: what takes long is tracing one after the other. Uneven ones are exported in test_export.py.
    model, batch = uneven(task, family, layers=1), batches_of(task, 1)[0]
    EXPORTS["onnx"](copy.deepcopy(model), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert tuple(output.name for output in session.get_outputs()) == task.outputs
    names = [given.name for given in session.get_inputs()]
    given = {name: batch.get(name, torch.zeros_like(batch["input_ids"])).numpy() for name in names}
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(value) for name, value in given.items()})
    for name, found in zip(task.outputs, session.run(None, given), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted[name], rtol=0, atol=1e-4)
    pytest.importorskip("openvino")
    from niwaki.export.openvino.session import Session

    there = Session(tmp_path / "a.onnx")({name: torch.from_numpy(value) for name, value in given.items()})
    for name, found in zip(task.outputs, there, strict=True):
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-4)
