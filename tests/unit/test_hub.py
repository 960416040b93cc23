"""A Hub id is loaded with the masks and the adapter that lie beside its weights; the Hub is a folder here."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from transformers import AutoModel, AutoModelForSequenceClassification

import niwaki
import niwaki.checkpoint.hub
from helpers_text import tiny_tokenizer
from niwaki.adapters import masks_of
from niwaki.anatomy import pooling_of
from niwaki.checkpoint import SentenceHead, load_tokenizer, plain_pooling, write_adapter
from tiny import batches, configs, logits, tiny, with_lora

COMMIT = "0" * 40
BATCH = batches(count=1)[0]
SPARSE = niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Publish a folder under a Hub id; of what is published only `seen` files are in the cache until asked for."""
    hub = tmp_path / "hub"
    for module in (constants, niwaki.checkpoint.hub):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published = {}

    def place(name):
        return hub / f"models--{name.replace('/', '--')}"

    def publish(folder, name):
        published[name] = folder
        (place(name) / "refs").mkdir(parents=True)
        (place(name) / "refs" / "main").write_text(COMMIT)
        snapshot = place(name) / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):  # what Transformers fetches
            if (folder / file).exists():
                shutil.copy(folder / file, snapshot / file)

    def snapshot_download(name, allow_patterns, **_):
        if name not in published:
            raise LocalEntryNotFoundError("not there")
        snapshot = place(name) / "snapshots" / COMMIT
        for path in published[name].rglob("*"):
            inside = path.relative_to(published[name])
            if path.is_file() and any(fnmatch(str(inside), pattern) for pattern in allow_patterns):
                (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / inside)
        return str(snapshot)

    def hf_hub_download(name, filename, revision, cache_dir):
        assert revision == COMMIT
        assert str(cache_dir) == str(hub)
        if not (published[name] / filename).is_file():
            raise LocalEntryNotFoundError("not there")
        target = place(name) / "snapshots" / COMMIT / filename
        shutil.copy(published[name] / filename, target)
        return str(target)

    monkeypatch.setattr(niwaki.checkpoint.hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(niwaki.checkpoint.hub, "hf_hub_download", hf_hub_download)
    monkeypatch.chdir(tmp_path)
    return publish


def _by_transformers(name):
    return AutoModelForSequenceClassification.from_pretrained(name, cache_dir=str(Path.cwd() / "hub")).eval()


@pytest.mark.parametrize("load", [niwaki.load, _by_transformers], ids=["niwaki", "transformers"])
def test_masks_are_fetched(load, cache, tmp_path):
    model = tiny()
    niwaki.prune_(model, SPARSE, [BATCH])
    niwaki.save(model, tmp_path / "a")
    cache(tmp_path / "a", "someone/sparse")
    again = load("someone/sparse")
    assert torch.equal(logits(again, BATCH), logits(model, BATCH))
    found = masks_of(again)
    assert found.keys() == masks_of(model).keys()
    assert all(torch.equal(found[name], mask) for name, mask in masks_of(model).items())


def test_an_adapter_beside_its_base_is_fetched(cache, tmp_path):
    model = with_lora(tiny())
    niwaki.prune_(model, SPARSE, [BATCH])
    (tmp_path / "a").mkdir()
    write_adapter(model, tmp_path / "a", tmp_path / "a", tiny_tokenizer())
    (tmp_path / "a").rename(tmp_path / "b")
    cache(tmp_path / "b", "someone/kept")
    again = niwaki.load("someone/kept")
    assert isinstance(again, PeftModel)
    assert masks_of(again).keys() == masks_of(model).keys()
    torch.testing.assert_close(logits(again, BATCH), logits(model, BATCH), rtol=0, atol=1e-6)
    assert load_tokenizer("someone/kept").pad_token == "[PAD]"


def test_an_adapter_of_its_own_is_fetched_and_its_base_found(cache, tmp_path):
    model = tiny()
    niwaki.save(model, tmp_path / "base", tiny_tokenizer())
    tuned = with_lora(model)
    tuned.save_pretrained(str(tmp_path / "lora"))
    cache(tmp_path / "lora", "someone/lora")
    again = niwaki.load("someone/lora", base_model=str(tmp_path / "base"))
    assert isinstance(again, PeftModel)
    assert torch.equal(logits(again, BATCH), logits(tuned, BATCH))
    assert load_tokenizer("someone/lora", base_model=str(tmp_path / "base")).pad_token == "[PAD]"


def test_a_plain_model_needs_nothing_beside_it(cache, tmp_path):
    model = tiny()
    niwaki.save(model, tmp_path / "a")
    cache(tmp_path / "a", "someone/plain")
    assert torch.equal(logits(niwaki.load("someone/plain"), BATCH), logits(model, BATCH))


def test_what_is_not_there_is_said_in_one_line(cache):
    with pytest.raises(niwaki.RequestError, match="must be a folder, or a Hub model"):
        niwaki.load("someone/nothing")


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_a_sentence_encoder_by_its_id(cache, tmp_path, inside):
    """With all modules that lie beside the model, also where that has a folder of its own."""
    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    AutoModel.from_config(configs()["bert"]).save_pretrained(folder / inside)
    tiny_tokenizer().save_pretrained(folder / inside)
    plain_pooling("cls", 32, 20).write(folder)
    if inside:
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = inside
        (folder / "modules.json").write_text(json.dumps(modules))
        shutil.move(folder / "sentence_bert_config.json", folder / inside)
    cache(folder, "someone/encoder")
    model = niwaki.load("someone/encoder")
    head = pooling_of(model)
    assert isinstance(head, SentenceHead)
    assert head.longest == 20
    assert set(head.files) == {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    with torch.no_grad():
        states = model(**{key: BATCH[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
    assert torch.equal(head(states, BATCH["attention_mask"].bool()), states[:, 0])
    if inside:
        assert len(load_tokenizer("someone/encoder")) == len(tiny_tokenizer())
