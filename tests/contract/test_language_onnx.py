"""What language models owe as ONNX: the text that `generate` gives, uneven, padded, with keys and values in and out."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from niwaki.anatomy import sites_of
from niwaki.errors import RequestError
from niwaki.evaluate import greedy
from niwaki.export import export_onnx, in_onnxruntime
from niwaki.export.onnx import plain_of, write_beside
from niwaki.export.onnx.check import check_finite
from niwaki.export.onnx.quantize import dynamic, matrices_of
from niwaki.export.onnx.session import Session
from niwaki.surgery import cut_
from tiny import ROWS, batches, decoders, logits, tiny

pytest.importorskip("onnxscript")
FAMILIES = [family for family in decoders() if family != "llama4_text"]


def uneven(family):
    """The first layer loses its heads and the second one unit of either kind; rows that share a family have one layer,
    with fewer heads, as an export takes long."""
    model = tiny(family, layers=2 if family in ROWS else 1)
    if family in ROWS:
        plan = {site.name: torch.arange(site.units - site.layer) for site in sites_of(model)}
        cut_(model, plan | {"layer.0.attention": torch.arange(0)})
    else:
        cut_(model, {site.name: torch.arange(site.units - 1) for site in sites_of(model)})
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_text_as_generate(family, tmp_path):
    model = uneven(family)
    placed = in_onnxruntime(model)
    there = placed.model
    ids, options = torch.tensor([[7, 30, 9]]), {"do_sample": False, "eos_token_id": None, "max_new_tokens": 12}
    options["attention_mask"] = torch.ones_like(ids)
    assert torch.equal(greedy(there, ids[0], 12), model.generate(ids, **options)[0, 3:])
    right = batches(family=family)[0]
    left = {name: tensor.flip(1) for name, tensor in right.items()}
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(logits(there, right), logits(model, right), rtol=0, atol=1e-4)
    if family == "gpt_neox" or family == "opt":
        del left["position_ids"]
    with torch.no_grad():
        wanted = model(**{name: tensor for name, tensor in left.items() if name != "labels"}).logits
    real = left["attention_mask"].bool()
    torch.testing.assert_close(logits(there, left), wanted[real], rtol=0, atol=1e-4)
    _check_names(placed.file)
    dynamic(placed.file)(tmp_path / "int8.onnx", matrices_of(placed.file))
    check_finite(model, Session(tmp_path / "int8.onnx"), None, "int8")


def test_how_it_ends_and_draws_stands_beside_the_graph(tmp_path):
    model = tiny("llama", layers=1)
    model.generation_config.update(eos_token_id=[1, 5], do_sample=True, temperature=0.7)
    write_beside(plain_of(model, "onnx"), tmp_path, None)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.do_sample, found.temperature) == ([1, 5], True, 0.7)


def _check_names(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    names = [put.name for put in session.get_inputs()]
    assert names[:2] == ["input_ids", "attention_mask"]
    assert any(name.startswith("past_key_values.") for name in names)
    assert [put.name for put in session.get_outputs()][:3] == ["logits", "present.0.key", "present.0.value"]


def test_what_has_no_graph_is_refused_by_name(tmp_path):
    with pytest.raises(RequestError, match=r"llama4_text model, whose rotations are complex"):
        export_onnx(tiny("llama4_text"), tmp_path / "a")
