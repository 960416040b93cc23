"""An exported model gives the logits of the one it was made from, where Niwaki is not installed too."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.adapters import masks_of, merge_
from niwaki.anatomy import sites_of
from niwaki.checkpoint import shapes_of
from niwaki.evaluate import quality
from niwaki.export import export_merged, export_onnx, export_remote_code, onnx, remote_code
from niwaki.export.onnx import write
from niwaki.export.onnx.engine import in_onnxruntime
from niwaki.export.onnx.graph import Graph
from niwaki.surgery import cut_
from niwaki.surgery.modeling_niwaki import EmptyAttention, PrunedForSequenceClassification
from tiny import batches, configs, logits, tiny, with_lora


def uneven(model):
    """Layer 0 narrower, layer 1 without neurons, layer 2 without heads where they can go."""
    left = {
        site.name: site.units if site.fixed else site.units - 1 if site.layer == 0 else 0 if _goes(site) else site.units
        for site in sites_of(model)
    }
    cut_(model, {name: torch.arange(units) for name, units in left.items()})
    return model


def _goes(site):
    return (site.layer, site.kind) in ((1, "ffn"), (2, "attention"))


def run_onnx(file, batch):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    assert [put.name for put in session.get_outputs()] == ["logits"]
    return names, torch.from_numpy(session.run(None, {name: batch[name].numpy() for name in names})[0])


def test_onnx_folder_of_an_adapter(tmp_path, capfd):
    pytest.importorskip("onnxscript")
    model = uneven(with_lora(tiny()))
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(record=True) as heard:
        export_onnx(model, tmp_path / "a", tiny_tokenizer())
    assert heard == []
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {"onnx", "config.json", "tokenizer.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    for batch in (batches(count=1, rows=3, length=9)[0], batches(count=1, rows=1, length=33)[0]):
        names, found = run_onnx(tmp_path / "a" / "onnx" / "model.onnx", batch)
        assert names == ["input_ids", "attention_mask"]
        torch.testing.assert_close(found, logits(model, batch), rtol=0, atol=1e-5)


def test_onnx_file_of_a_model_with_segments(tmp_path):
    pytest.importorskip("onnxscript")
    model = uneven(tiny("bert", layers=1))
    export_onnx(model, tmp_path / "bert.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bert.onnx"]
    batch = batches()[0]
    segments = (torch.arange(12) > 4).long().expand(12, 12).contiguous()
    names, found = run_onnx(tmp_path / "bert.onnx", {**batch, "token_type_ids": segments})
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    with torch.no_grad():
        expected = model(**{**batch, "token_type_ids": segments}).logits
    assert (expected - logits(model, batch)).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        export_onnx(model, tmp_path / "bert.onnx")
    assert onnx._is_ours(tmp_path / "bert.onnx")


@pytest.mark.parametrize("theirs", [b"", b"notes", "onnx"])
def test_an_onnx_file_of_somebody_else_is_not_replaced(theirs, tmp_path):
    pytest.importorskip("onnxscript")
    from onnx import helper

    file = tmp_path / "a.onnx"
    model = helper.make_model(helper.make_graph([], "theirs", [], []))
    file.write_bytes(model.SerializeToString() if theirs == "onnx" else theirs)
    before = file.read_bytes()
    with pytest.raises(niwaki.RequestError, match=r"an ONNX model that Niwaki wrote, got .* something else"):
        export_onnx(tiny(), file, overwrite=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_onnx_that_differs_is_refused_and_not_left(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    model = tiny(layers=1)

    class Other(Graph):
        def forward(self, input_ids, attention_mask):
            (found,) = super().forward(input_ids, attention_mask)
            return (found if torch.compiler.is_exporting() else found + 0.125,)

    monkeypatch.setattr(write, "graph_of", Other)
    with pytest.raises(niwaki.WorkError, match=r"0\.0001.*0\.125"):
        export_onnx(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_attention_is_one_node_with_the_heads_of_its_layer_and_int8_keeps_zeros(tmp_path):
    pytest.importorskip("onnxscript")
    from onnx import load, numpy_helper

    model = tiny("bert", layers=2)
    cut_(model, {site.name: torch.arange(site.units - site.layer) for site in sites_of(model)})
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), batches())
    export_onnx(model, tmp_path / "b", tiny_tokenizer(), quantize="int8", optimize=True)
    assert {path.name for path in (tmp_path / "b").iterdir()} >= {"onnx", "config.json"}
    file = tmp_path / "b" / "onnx" / "model_quantized.onnx"
    assert onnx._is_ours(file)
    segments = torch.zeros_like(batches()[0]["input_ids"])
    _, found = run_onnx(file, {**batches()[0], "token_type_ids": segments})
    wanted = logits(model, batches()[0])
    assert 0 < (found - wanted).norm() < 0.2 * wanted.norm()
    rounded = load(str(file)).graph
    nodes = [node for node in rounded.node if node.op_type == "MultiHeadAttention"]
    assert [{a.name: a.i for a in node.attribute}["num_heads"] for node in nodes] == [4, 3]
    kinds = {node.op_type for node in rounded.node}
    assert kinds & {"Gelu", "BiasGelu"}
    assert "LayerNormalization" in kinds
    assert not kinds & {"MatMul", "Erf", "SkipLayerNormalization"}  # of these norms ONNX Runtime is slow
    weights = [numpy_helper.to_array(tensor) for tensor in rounded.initializer if tensor.data_type == 3]
    assert sum(int((weight == 0).sum()) for weight in weights) >= sum(int((~m).sum()) for m in masks_of(model).values())


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(niwaki.RequestError, match=r"onnxscript.*pip install niwaki\[onnx\]"):
        export_onnx(tiny(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lora", [False, True])
def test_merged(lora, tmp_path):
    model = uneven(with_lora(tiny()) if lora else tiny())
    export_merged(model, tmp_path / "a", tiny_tokenizer())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a").eval()
    assert torch.equal(logits(loaded, batches()[0]), logits(merge_(copy.deepcopy(model)), batches()[0]))
    assert AutoTokenizer.from_pretrained(tmp_path / "a").pad_token == "[PAD]"
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        export_merged(model, tmp_path / "a")


def test_merged_holds_no_masks(tmp_path):
    model = tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), batches(count=1))
    export_merged(model, tmp_path / "a")
    assert "niwaki" not in (tmp_path / "a" / "config.json").read_text()
    loaded = niwaki.load(tmp_path / "a")
    assert not masks_of(loaded)
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))
    assert masks_of(model)


# What a user without Niwaki does with a remote-code folder: load, train a step, save, load again.
ELSEWHERE = """
import sys
sys.modules["niwaki"] = None  # importing it fails
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
place = Path(sys.argv[1])
batch = load_file(place / "batch.safetensors")
following = batch.pop("next")
def load(folder):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    auto = AutoModelForCausalLM if "AutoModelForCausalLM" in config.auto_map else AutoModelForSequenceClassification
    return auto.from_pretrained(folder, trust_remote_code=True)
def logits(model):
    with torch.no_grad():
        found = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return found[batch["attention_mask"].bool()] if found.dim() == 3 else found
for folder in sorted(path for path in place.iterdir() if path.is_dir() and path.name != "modules"):
    model = load(folder)
    save_file({"logits": logits(model)}, place / f"{folder.name}.first")
    fresh = type(model)(model.config)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    model(**batch | ({"labels": following} if model.can_generate() else {})).loss.backward()
    optimizer.step()
    trained = logits(model)
    model.save_pretrained(folder / "trained")
    assert torch.equal(logits(load(folder / "trained")), trained)
    save_file({"logits": trained}, place / f"{folder.name}.trained")
assert not any(name.startswith("niwaki.") for name in sys.modules)
# And one who has it: what remote code loaded is a model like any other.
del sys.modules["niwaki"]
sys.path.insert(0, sys.argv[2])
import niwaki
model = load(place / "distilbert")
niwaki.save(model, place / "again")
assert not (place / "again" / "modeling_niwaki.py").exists()
assert torch.equal(logits(niwaki.load(place / "again")), logits(model))
"""


def test_remote_code_without_niwaki(tmp_path):
    adapted, families = ("roberta", "gpt2"), [name for name in configs() if name not in ("gpt_neox", "mobilellm")]
    models = {family: uneven(with_lora(tiny(family)) if family in adapted else tiny(family)) for family in families}
    plain = tiny("electra")
    for name, model in {**models, "plain": plain}.items():
        export_remote_code(model, tmp_path / name, tiny_tokenizer())
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert "quantization_config" not in config
        assert (tmp_path / name / "tokenizer.json").is_file()
        assert (tmp_path / name / "modeling_niwaki.py").is_file()
    batch = batches()[0]
    save_file({**batch, "next": batches(family="llama")[0]["labels"]}, tmp_path / "batch.safetensors")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    (tmp_path / "modules").mkdir()
    source = str(importlib.util.find_spec("niwaki").submodule_search_locations[0]).removesuffix("niwaki")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::FutureWarning", "-c", ELSEWHERE, str(tmp_path), source],
        capture_output=True,
        text=True,
        env={**environment, "TRANSFORMERS_VERBOSITY": "warning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    for name, model in {**models, "plain": plain}.items():
        expected = logits(merge_(model), batch)
        assert torch.equal(load_file(tmp_path / f"{name}.first")["logits"], expected), name
        loaded = niwaki.load(tmp_path / name)
        assert not type(loaded).__module__.startswith("transformers_modules")
        assert shapes_of(loaded) == shapes_of(model)
        assert torch.equal(logits(loaded, batch), expected)
        trained = load_file(tmp_path / f"{name}.trained")["logits"]
        assert not torch.equal(trained, expected)
        assert torch.equal(logits(niwaki.load(tmp_path / name / "trained"), batch), trained)


def test_remote_code_refuses_what_it_cannot_load_again(tmp_path):
    with pytest.raises(niwaki.RequestError, match="to must be merged for a gpt_neox model"):
        export_remote_code(tiny("gpt_neox"), tmp_path / "a")
    with pytest.raises(niwaki.RequestError, match="mobilellm model, for which Transformers has no class"):
        export_remote_code(tiny("mobilellm"), tmp_path / "a")


def test_a_loaded_remote_code_folder_is_saved_without_its_code(tmp_path):
    model = uneven(tiny())
    export_remote_code(model, tmp_path / "a")
    loaded = niwaki.load(tmp_path / "a")
    plan = {site.name: torch.arange(site.units) for site in sites_of(loaded)} | {"layer.0.ffn": torch.arange(9)}
    cut_(loaded, plan)
    niwaki.save(loaded, tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert not {"auto_map", "niwaki"} & set(config)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    assert torch.equal(logits(stock, batches()[0]), logits(loaded, batches()[0]))
    assert not torch.equal(logits(stock, batches()[0]), logits(model, batches()[0]))


def test_the_shipped_module_is_the_exported_one_but_for_the_class(tmp_path):
    export_remote_code(tiny("roberta"), tmp_path / "a")
    text = (tmp_path / "a" / "modeling_niwaki.py").read_text()
    assert "from transformers import RobertaForSequenceClassification as Dense" in text
    assert "DistilBert" not in text
    assert "import niwaki" not in text
    assert "from niwaki" not in text
    config = tiny().config
    config.niwaki = remote_code._table(uneven(tiny()))
    with torch.device("meta"):
        built = PrunedForSequenceClassification(config)
    assert shapes_of(built) == config.niwaki["layers"]
    assert isinstance(built.distilbert.transformer.layer[2].attention, EmptyAttention)


def test_what_is_measured_in_onnxruntime_is_what_it_gives():
    pytest.importorskip("onnxscript")
    model, data = with_lora(tiny("bert", layers=1)), batches()
    before = copy.deepcopy(model.state_dict())
    placed = in_onnxruntime(model)
    there = placed.model
    torch.testing.assert_close(logits(there, data[0]), logits(model, data[0]), rtol=0, atol=1e-4)
    assert quality(there, data).keys() == quality(model, data).keys()
    whole = {"input_ids": data[0]["input_ids"][:1]}
    with torch.no_grad():
        assert torch.equal(there(**whole).logits, there(**whole, attention_mask=whole["input_ids"] * 0 + 1).logits)
    assert placed.size_bytes == placed.file.stat().st_size
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
