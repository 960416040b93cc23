"""Pruned models come back bit for bit, through niwaki and through Transformers; damaged ones are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.anatomy import family_of
from niwaki.checkpoint import load_tokenizer, new_parameters, shapes_of, write_adapter
from tiny import CUT, auto_class, batches, configs, encoders, logits, tiny, with_lora


@pytest.mark.parametrize("family", configs())
def test_save_and_load_are_bit_equal(family, tmp_path):
    model = tiny(family)
    niwaki.prune_(model, niwaki.Structured(flops=0.7, **CUT), batches(family=family))
    niwaki.save(model, tmp_path / "a")
    loaded = niwaki.load(tmp_path / "a")
    stock = auto_class(family).from_pretrained(tmp_path / "a").eval()
    stock.save_pretrained(tmp_path / "b")
    again = auto_class(family).from_pretrained(tmp_path / "b").eval()
    for other in (loaded, stock, again):
        assert shapes_of(other) == shapes_of(model)
        for batch in batches():
            assert torch.equal(logits(other, batch), logits(model, batch))


def test_the_home_folder_is_written_and_read_under_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    niwaki.save(tiny(), "~/model")
    assert (tmp_path / "model" / "config.json").is_file()
    niwaki.load("~/model")
    with pytest.raises(niwaki.RequestError, match="out must be text in UTF-8"):
        niwaki.save(tiny(), "caf\udce9")


def test_a_reloaded_model_trains_and_is_pruned_again(tmp_path):
    model = tiny()
    niwaki.prune_(model, niwaki.Structured(flops=0.8, **CUT), batches())
    niwaki.save(model, tmp_path / "a")
    loaded = niwaki.load(tmp_path / "a")
    loaded(**batches()[0]).loss.backward()
    niwaki.prune_(loaded, niwaki.Structured(flops=0.7, **CUT), batches())
    niwaki.save(loaded, tmp_path / "b")
    assert torch.equal(logits(niwaki.load(tmp_path / "b"), batches()[0]), logits(loaded, batches()[0]))


def test_an_even_cut_is_a_plain_config(tmp_path):
    model = tiny("mpnet")
    niwaki.prune_(model, niwaki.Structured(flops=0.88, allocation="uniform", round_to=16, **CUT), batches())
    assert {layer["neurons"] for layer in shapes_of(model)} == {32}
    niwaki.save(model, tmp_path / "a")
    assert "niwaki" not in (tmp_path / "a" / "config.json").read_text()
    assert torch.equal(logits(niwaki.load(tmp_path / "a"), batches()[0]), logits(model, batches()[0]))


def test_adapter_round_trip_is_bit_equal_and_trains(tmp_path):
    model = with_lora(tiny())
    niwaki.prune_(model, niwaki.Structured(flops=0.6, **CUT), batches())
    named = model.peft_config["default"].base_model_name_or_path
    write_adapter(model, tmp_path, tmp_path)
    assert model.peft_config["default"].base_model_name_or_path == named
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))
    loaded(**batches()[0]).loss.backward()
    assert all(p.grad is not None for n, p in loaded.named_parameters() if "lora_" in n)


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


def _named(folder, base):
    """Say in the adapter's config that its base is `base`."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))


@pytest.fixture
def adapter(tmp_path):
    """A base with a tokenizer in `tmp_path/models/base`, an adapter on it in `tmp_path/models/lora`."""
    model = tiny()
    niwaki.save(model, tmp_path / "models" / "base", tiny_tokenizer())
    model = with_lora(model)
    model.save_pretrained(str(tmp_path / "models" / "lora"))
    return model


@pytest.mark.parametrize(
    ("named", "directory"),
    [
        ("models/base", "."),  # from the working directory
        ("../base", "models/lora/.."),  # from the adapter's folder
        ("/nowhere/old-place/base", "."),  # beside the adapter's folder, both moved
        ("gone/base", "."),
    ],
)
def test_the_base_of_an_adapter_is_found(adapter, tmp_path, monkeypatch, named, directory):
    _named(tmp_path / "models" / "lora", named)
    monkeypatch.chdir(tmp_path / directory)
    loaded = niwaki.load(tmp_path / "models" / "lora")
    assert torch.equal(logits(loaded, batches()[0]), logits(adapter, batches()[0]))
    assert load_tokenizer(tmp_path / "models" / "lora").pad_token == "[PAD]"


def test_a_pruned_base_and_its_adapter_move_together(tmp_path):
    model = with_lora(tiny())
    niwaki.prune_(model, niwaki.Structured(flops=0.6, **CUT), batches())
    (tmp_path / "here").mkdir()
    write_adapter(model, tmp_path / "here", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = niwaki.load(tmp_path / "there" / "adapter")
    assert torch.equal(logits(loaded, batches()[0]), logits(model, batches()[0]))


def test_an_adapter_that_peft_saves_on_a_pruned_base_names_no_base(tmp_path):
    niwaki.save(tiny(), tmp_path / "base")
    model = with_lora(niwaki.load(tmp_path / "base"))
    niwaki.prune_(model, niwaki.Structured(flops=0.6, **CUT), batches())
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(niwaki.RequestError, match=r"base_model must be given: the adapter .* names none"):
        niwaki.load(tmp_path / "adapter")


def test_a_named_adapter_is_found_beside_its_base(tmp_path):
    named = get_peft_model(tiny(), LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"]), adapter_name="mine")
    write_adapter(named, tmp_path, tmp_path)
    loaded = niwaki.load(tmp_path)
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded, batches()[0]), logits(named.eval(), batches()[0]))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "adapter_config.json must be"),
        ("[]", "adapter_config.json must be"),
        ('{"peft_type": "MAGIC"}', "adapter_config.json must be"),
        ('{"peft_type": "LORA", "use_dora": true}', "must be plain .*, got DoRA"),
        ('{"peft_type": "IA3"}', "must be LoRA, got .*IA3"),
        (None, "must hold adapter_model.safetensors"),
    ],
)
def test_a_broken_adapter_is_refused(adapter, tmp_path, text, rule):
    lora = tmp_path / "models" / "lora"
    if text is None:
        (lora / "adapter_model.safetensors").rename(lora / "other.safetensors")
    else:
        (lora / "adapter_config.json").write_text(text)
    with pytest.raises(niwaki.RequestError, match=rule):
        niwaki.load(lora)


@pytest.mark.parametrize("change", [{"n_layers": "six"}, {"model_type": 3}, {"dim": None}])
def test_a_config_of_wrong_types_is_refused(adapter, tmp_path, change):
    path = tmp_path / "models" / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(niwaki.RequestError, match="model must be"):
        niwaki.load(path.parent)


@pytest.mark.parametrize("family", ["distilbert", "bert"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": -4}, "config.json' must be at least 1, got -4"),
        ({"heads": 0}, "model must be"),
        ({"heads": 3}, "model must be .* (evenly|multiple)"),
        ({"width": 0}, "model must be"),
        ({"id2label": {"0": "a", "1": "\ud800"}}, r"id2label in config.json of .* must be text in UTF-8"),
        ({"pad_token_id": 99}, "model must be .*[Pp]adding_idx"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(family, change, said, tmp_path):
    model = tiny(family)
    niwaki.save(model, tmp_path / "a")
    path, row = tmp_path / "a" / "config.json", family_of(model)
    names = {"heads": row.heads_key, "width": "dim" if family == "distilbert" else "hidden_size"}
    changed = {names.get(key, key): value for key, value in change.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(niwaki.RequestError, match=said):
        niwaki.load(tmp_path / "a")


@pytest.mark.parametrize("labels", [None, ["a", "b"]])
def test_a_hub_that_cannot_be_reached_is_one_line(labels):
    with pytest.raises(niwaki.RequestError, match=r"a folder, or a Hub model .* got 'someone/unknown'") as caught:
        niwaki.load("someone/unknown", labels=labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", encoders())
def test_other_labels_get_a_head_of_their_own(family, tmp_path):
    niwaki.save(tiny(family), tmp_path / "a")
    before = niwaki.load(tmp_path / "a").state_dict()
    for labels in (["0", "1", "2"], ["label_2", "label_1", "label_0"]):
        same = niwaki.load(tmp_path / "a", labels=labels)
        assert new_parameters(same) == ()
        assert all(torch.equal(value, before[name]) for name, value in same.state_dict().items())
    for labels in (["high", "low", "none"], ["high", "low"]):
        other = niwaki.load(tmp_path / "a", labels=labels)
        assert list(other.config.label2id) == labels
        assert {name.rpartition(".")[2] for name in new_parameters(other)} == {"weight", "bias"}
        after = other.state_dict()
        changed = {name for name in before if not torch.equal(after[name], before[name])}
        assert changed == set(new_parameters(other))


@pytest.mark.parametrize("named", ["models/gone", "/nowhere/gone", "../gone", None])
def test_a_dangling_base_is_one_clear_error(adapter, tmp_path, named):
    lora = tmp_path / "elsewhere" / "lora"
    shutil.copytree(tmp_path / "models" / "lora", lora)
    _named(lora, named or "")
    for call in (niwaki.load, load_tokenizer):
        with pytest.raises(niwaki.RequestError, match="base_model must be given") as caught:
            call(lora)
        message = str(caught.value)
        assert "\n" not in message
        for place in (named, lora / named, lora.parent / "gone") if named else ():
            assert repr(str(place)) in message


def test_loading_and_saving_say_nothing_and_leave_logging_as_it_was(adapter, tmp_path, capfd):
    model = tiny()
    niwaki.save(model, tmp_path / "plain")
    _named(tmp_path / "models" / "lora", "../base")
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / "plain" / "model.safetensors")
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    headless = niwaki.load(tmp_path / "plain")
    niwaki.load(tmp_path / "models" / "lora")
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert new_parameters(headless) == (
        "classifier.bias",
        "classifier.weight",
        "pre_classifier.bias",
        "pre_classifier.weight",
    )
    assert torch.isfinite(logits(headless, batches()[0])).all()


def test_an_adapter_brings_its_head(adapter, tmp_path):
    path = tmp_path / "models" / "base" / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, path)
    _named(tmp_path / "models" / "lora", "../base")
    loaded = niwaki.load(tmp_path / "models" / "lora")
    assert new_parameters(loaded) == ()


def test_a_missing_layer_is_not_filled_with_noise(tmp_path):
    niwaki.save(tiny(), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    weights = load_file(path)
    del weights["distilbert.transformer.layer.1.ffn.lin1.weight"]
    save_file(weights, path)
    with pytest.raises(niwaki.RequestError, match=r"layer\.1\.ffn\.lin1\.weight"):
        niwaki.load(tmp_path / "a")


@pytest.mark.parametrize("layers", [[], None, [{"heads": 9, "neurons": 3}] * 3, [{"neurons": 3}] * 3, ["no"] * 3])
def test_a_wrong_table_of_shapes_is_refused(layers, tmp_path):
    model = tiny()
    niwaki.prune_(model, niwaki.Structured(flops=0.7, **CUT), batches())
    niwaki.save(model, tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layers"] = layers
    path.write_text(json.dumps(config))
    with pytest.raises(niwaki.RequestError, match="shapes"):
        niwaki.load(tmp_path / "a")
