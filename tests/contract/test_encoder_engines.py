"""Encoders of every row of the table of families give in ONNX Runtime and in OpenVINO what they give in PyTorch."""

from __future__ import annotations

import pytest
import torch

from niwaki.anatomy import sites_of
from niwaki.export import in_onnxruntime
from niwaki.export.onnx.check import check_finite
from niwaki.export.onnx.quantize import dynamic, matrices_of
from niwaki.export.onnx.session import Session as OnnxSession
from niwaki.surgery import cut_
from tiny import ROWS, batches, encoders, logits, tiny

pytest.importorskip("onnxscript")


# LayoutLM's mask is one row for all queries.
@pytest.mark.parametrize("family", [family for family in encoders() if family in ROWS or family == "layoutlm"])
def test_engines_give_what_the_model_gives(family):
    # One layer: what takes long is tracing one after the other. Uneven ones are exported in unit/test_export.py.
    model, batch = tiny(family, layers=1), batches(rows=5)[0]
    cut_(model, {site.name: torch.arange(site.units - 1 + site.fixed) for site in sites_of(model)})
    placed = in_onnxruntime(model)
    wanted = logits(model, batch)
    torch.testing.assert_close(logits(placed.model, batch), wanted, rtol=0, atol=1e-4)
    pytest.importorskip("openvino")
    from niwaki.export.openvino.session import Session

    (found,) = Session(placed.file)({**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_sites_without_units_are_their_biases_in_every_engine(tmp_path):
    model, batch = tiny("bert"), batches(rows=5)[0]
    gone = {"layer.0.attention", "layer.1.ffn", "layer.2.attention", "layer.2.ffn"}
    cut_(model, {site.name: torch.arange(0 if site.name in gone else site.units) for site in sites_of(model)})
    placed = in_onnxruntime(model)
    wanted = logits(model, batch)
    torch.testing.assert_close(logits(placed.model, batch), wanted, rtol=0, atol=1e-4)
    dynamic(placed.file)(tmp_path / "int8.onnx", matrices_of(placed.file))
    check_finite(model, OnnxSession(tmp_path / "int8.onnx"), None, "int8")
    pytest.importorskip("openvino")
    from niwaki.export.openvino.session import Session

    (found,) = Session(placed.file)({**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
