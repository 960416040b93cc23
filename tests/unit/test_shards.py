"""Models in several files: read and written, masked, packed, exported; damaged ones refused by name."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import niwaki
from niwaki import checkpoint
from niwaki.adapters import masks_of
from niwaki.checkpoint import INDEX, weight_files
from niwaki.export import export_remote_code
from tiny import CUT, batches, logits, tiny, with_lora

SMALL = "20KB"


@pytest.fixture(params=["dense", "uneven", "masked"])
def model(request):
    model = tiny("llama")
    if request.param == "uneven":
        niwaki.prune_(model, niwaki.Structured(flops=0.6, min_heads=0, **CUT), batches(family="llama", count=2))
    if request.param == "masked":
        config = niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", allocation="uniform", repair="none")
        niwaki.prune_(model, config, batches(family="llama", count=2))
    return model


def same(found, wanted):
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    masks = masks_of(found)
    assert masks.keys() == masks_of(wanted).keys()
    assert all(torch.equal(masks[name], mask) for name, mask in masks_of(wanted).items())


@pytest.mark.parametrize("compact", [False, True])
def test_round_trip(model, tmp_path, compact):
    wanted = copy.deepcopy(model)
    niwaki.save(model, tmp_path / "out", compact=compact, max_shard_size=SMALL)
    files = weight_files(tmp_path / "out")
    assert len(files) > 2
    assert all(file.stat().st_size < 22_000 for file in files)
    same(model, wanted)
    same(niwaki.load(tmp_path / "out"), wanted)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(stock, batches()[0]), logits(wanted, batches()[0]))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert {tmp_path / "out" / name for name in index["weight_map"].values()} == set(files)
    niwaki.save(model, tmp_path / "one", compact=compact)
    (one,) = weight_files(tmp_path / "one")
    assert abs(sum(file.stat().st_size for file in files) - one.stat().st_size) < 200 * len(files)


def test_an_adapter_on_a_base_in_shards(tmp_path):
    tuned = with_lora(tiny("llama"))
    niwaki.save(tiny("llama"), tmp_path / "base", max_shard_size=SMALL)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    again = niwaki.load(tmp_path / "adapter", base_model=str(tmp_path / "base"))
    assert torch.equal(logits(again, batches()[0]), logits(tuned, batches()[0]))


@pytest.mark.parametrize("model", ["uneven"], indirect=True)  # a process of its own: once
def test_remote_code_in_shards(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.write_model, "__defaults__", (None, False, SMALL))
    export_remote_code(model, tmp_path / "out")
    assert len(weight_files(tmp_path / "out")) > 2
    same(niwaki.load(tmp_path / "out"), model)
    torch.save((batches()[0], logits(model, batches()[0])), tmp_path / "wanted.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A;"
        "batch, wanted = torch.load('wanted.pt'); batch.pop('labels');"
        "found = A.from_pretrained('out', trust_remote_code=True)(**batch).logits[batch['attention_mask'].bool()];"
        "assert torch.equal(found, wanted); assert 'niwaki' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_named(tmp_path):
    niwaki.save(tiny("llama"), tmp_path / "out", max_shard_size=SMALL)
    shard = weight_files(tmp_path / "out")[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(niwaki.RequestError, match=f"{shard.name}' must be whole, got a damaged one"):
        niwaki.load(tmp_path / "out")
    shard.unlink()
    with pytest.raises(niwaki.RequestError, match=rf"every shard that {INDEX} names, got .* without {shard.name}"):
        niwaki.load(tmp_path / "out")
    shard.write_bytes(whole)
    (tmp_path / "out" / INDEX).write_text("{}")
    with pytest.raises(niwaki.RequestError, match=f"{INDEX} must name the shard of every weight"):
        niwaki.load(tmp_path / "out")
