"""Pruned models come back bit for bit, through niwaki and through Transformers; damaged ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import niwaki
from niwaki.checkpoint import atomic_folder, shapes_of, write_adapter
from tiny import batches, configs, logits, tiny, with_lora


@pytest.mark.parametrize("family", configs())
def test_save_and_load_are_bit_equal(family, tmp_path):
    model = tiny(family)
    niwaki.prune_(model, niwaki.Structured(flops=0.7, steps=1), batches())
    niwaki.save(model, tmp_path / "a")
    loaded = niwaki.load(tmp_path / "a")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a").eval()
    stock.save_pretrained(tmp_path / "b")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    for other in (loaded, stock, again):
        assert shapes_of(other) == shapes_of(model)
        for batch in batches():
            assert torch.equal(logits(other, batch), logits(model, batch))


def test_a_reloaded_model_trains_and_is_pruned_again(tmp_path):
    model = tiny()
    niwaki.prune_(model, niwaki.Structured(flops=0.8, steps=1), batches())
    niwaki.save(model, tmp_path / "a")
    loaded = niwaki.load(tmp_path / "a")
    loaded(**batches()[0]).loss.backward()
    niwaki.prune_(loaded, niwaki.Structured(flops=0.7, steps=1), batches())
    niwaki.save(loaded, tmp_path / "b")
    assert torch.equal(logits(niwaki.load(tmp_path / "b"), batches()[0]), logits(loaded, batches()[0]))


def test_an_even_cut_is_a_plain_config(tmp_path):
    model = tiny("mpnet")
    niwaki.prune_(model, niwaki.Structured(flops=0.88, steps=1, allocation="uniform", round_to=16), batches())
    assert {layer["neurons"] for layer in shapes_of(model)} == {32}
    niwaki.save(model, tmp_path / "a")
    assert "niwaki" not in (tmp_path / "a" / "config.json").read_text()
    assert torch.equal(logits(niwaki.load(tmp_path / "a"), batches()[0]), logits(model, batches()[0]))


def test_adapter_round_trip_is_bit_equal_and_trains(tmp_path):
    model = with_lora(tiny())
    niwaki.prune_(model, niwaki.Structured(flops=0.6, steps=1), batches())
    named = model.peft_config["default"].base_model_name_or_path
    write_adapter(model, tmp_path, tmp_path)
    assert model.peft_config["default"].base_model_name_or_path == named
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))
    loaded(**batches()[0]).loss.backward()
    assert all(p.grad is not None for n, p in loaded.named_parameters() if "lora_" in n)


def test_nothing_half_written_is_left(tmp_path):
    def interrupted():
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_or_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        niwaki.save(tiny(), tmp_path / "out")
    assert (tmp_path / "out" / "mine").exists()
    niwaki.save(tiny(), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine").exists()


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    rename = Path.rename

    def failing(self, target):
        if (self / "new").exists():
            raise OSError("no")
        return rename(self, target)

    def replaced():
        with atomic_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "new").write_text("x")

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        replaced()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    monkeypatch.undo()
    replaced()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_damaged_and_missing_files_are_named(tmp_path):
    niwaki.save(tiny(), tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(niwaki.RequestError, match=r"model\.safetensors"):
        niwaki.load(tmp_path / "a")
    weights.unlink()
    with pytest.raises(niwaki.RequestError, match="without any"):
        niwaki.load(tmp_path / "a")
    with pytest.raises(niwaki.RequestError, match="nowhere"):
        niwaki.load(tmp_path / "nowhere")
