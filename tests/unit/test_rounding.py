"""Weights rounded to int8: by which scales, what is spared, and the engines that run it."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from helpers_tasks import OTHERS, model_of
from helpers_text import tiny_tokenizer
from niwaki.anatomy import sites_of
from niwaki.evaluate import fidelity
from niwaki.export import Calibration, export_onnx, export_openvino, in_onnxruntime, in_openvino
from niwaki.export.onnx.graph import Graph
from niwaki.export.onnx.quantize import _Texts, matrices_of
from niwaki.surgery import cut_
from tiny import batches, logits, tiny, with_lora

pytest.importorskip("onnxscript")


def test_static_int8_spares_the_matrices_that_cost_too_much(tmp_path):
    from onnx import load

    model, data = tiny("bert", layers=1), batches()
    with pytest.raises(niwaki.RequestError, match=r"calibration must be given with quantize int8-static.*got none"):
        export_onnx(model, tmp_path / "a.onnx", quantize="int8-static")
    export_onnx(model, tmp_path / "exact.onnx")
    total = sorted(matrices_of(tmp_path / "exact.onnx"))

    def rounded(most):
        there = in_onnxruntime(model, quantize="int8-static", calibration=Calibration(data, most))
        found, nodes = fidelity(model, there.model, data)["kl"], load(str(there.file)).graph.node
        assert found <= most
        assert ("QuantizeLinear" in {node.op_type for node in nodes}) == (there.in_float32 < len(total))
        return there.in_float32, found

    none, costs = rounded(10.0)
    assert none == 0
    assert 0 < rounded(costs / 4)[0] < len(total)
    spared = export_onnx(model, tmp_path / "a.onnx", quantize="int8-static", calibration=Calibration(data, 1e-15))
    assert sorted(spared) == total


def test_padding_sets_no_scale():
    batch = {"input_ids": torch.tensor([[7, 8, 0], [1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    texts = _Texts(Graph(tiny()), batch, ["input_ids"])
    assert [texts.get_next()["input_ids"].tolist() for _ in range(2)] == [[[7, 8]], [[1, 2, 3]]]
    assert texts.get_next() is None


def test_padding_beside_the_longest_text_of_a_row_sets_no_scale_either():
    task = next(task for task in OTHERS if task.labels == "choice")
    ids, mask = torch.tensor([[[7, 8, 0], [1, 2, 3]]]), torch.tensor([[[1, 1, 0], [1, 1, 1]]])
    texts = _Texts(Graph(model_of(task, "bert")), {"input_ids": ids, "attention_mask": mask}, ["input_ids"])
    assert [texts.get_next()["input_ids"].tolist() for _ in range(2)] == [[[[7, 8]]], [[[1, 2, 3]]]]
    assert texts.get_next() is None


def test_openvino_gives_what_the_model_gives_as_it_is_and_in_int8(tmp_path):
    pytest.importorskip("openvino")
    model, data = with_lora(tiny("bert", layers=2)), batches()
    cut_(model, {site.name: torch.arange(site.units - site.layer) for site in sites_of(model)})
    before = copy.deepcopy(model.state_dict())
    export_openvino(model, tmp_path / "a", tiny_tokenizer())
    found = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*")}
    assert found >= {"openvino/openvino_model.xml", "openvino/openvino_model.bin", "config.json", "tokenizer.json"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    exact = in_openvino(model)
    torch.testing.assert_close(logits(exact.model, data[0]), logits(model, data[0]), rtol=0, atol=1e-4)
    rounded = in_openvino(model, quantize="int8-static", calibration=Calibration(data))
    assert 0 < fidelity(exact.model, rounded.model, data)["kl"] <= 2 * Calibration(data).most
    assert rounded.size_bytes != exact.size_bytes
    with pytest.raises(niwaki.RequestError, match="language model, got 'openvino'"):
        export_openvino(tiny("llama"), tmp_path / "b")
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        export_openvino(model, tmp_path / "a")
