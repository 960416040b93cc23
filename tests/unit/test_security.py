"""What comes with a model, its data or a request runs nothing, writes nothing elsewhere and reaches no network."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import socket
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from test_report import RESULT

import niwaki
from helpers_fuzz import allowed
from helpers_text import letter_tokenizer
from niwaki.checkpoint import load_tokenizer, write_adapter
from niwaki.config import read_recipe
from niwaki.data import read_table
from niwaki.report import page
from tiny import tiny, with_lora


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


CODE = "from pathlib import Path\nPath({!r}).mkdir()\nclass Evil: pass\n"


@pytest.fixture
def model(tmp_path):
    """A folder with a model and its tokenizer."""
    niwaki.save(tiny(layers=1), tmp_path / "model", letter_tokenizer())
    return tmp_path / "model"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.mark.parametrize("beside", [True, False])
def test_nothing_is_unpickled(model, tmp_path, beside):
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "model.pt"):
        (model / name).write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    if beside:
        niwaki.load(model)
    else:
        (model / "model.safetensors").unlink()
        with pytest.raises(niwaki.RequestError, match="must hold safetensors weights"):
            niwaki.load(model)
    with_lora(tiny(layers=1)).save_pretrained(str(tmp_path / "lora"), safe_serialization=True)
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "other.safetensors")
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(niwaki.RequestError, match="safetensors"):
        niwaki.load(tmp_path / "lora", base_model=str(model))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["distilbert", "evil"])
def test_no_code_that_comes_with_a_model_or_tokenizer_is_run(model, tmp_path, kind):
    (model / "evil.py").write_text(CODE.format(str(tmp_path / "run")), "utf-8")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    change(model / "config.json", model_type=kind, architectures=["Evil"], auto_map=dict.fromkeys(names, "evil.Evil"))
    with pytest.raises(niwaki.RequestError, match="without code of its own"):
        niwaki.load(model)
    change(model / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    with pytest.raises(niwaki.RequestError, match=r"code of its own|tokenizer files"):
        load_tokenizer(model)
    assert not (tmp_path / "run").exists()


def test_no_name_leads_out_of_the_folder(model, tmp_path):
    template = [{"name": name, "template": "x"} for name in ("default", "../../evil")]
    change(model / "tokenizer_config.json", chat_template=template)
    with pytest.raises(niwaki.RequestError, match=r"chat templates must have names .*evil"):
        load_tokenizer(model)
    (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"classifier.weight": "../elsewhere.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(niwaki.RequestError, match=r"name files beside it, got .*elsewhere"):
        niwaki.load(model)
    evil = str(tmp_path / "evil")
    tuned = get_peft_model(tiny(layers=1), LoraConfig(target_modules=["q_lin"]), adapter_name=evil)
    (tmp_path / "out").mkdir()
    with pytest.raises(niwaki.RequestError, match="name that a folder can have"):
        write_adapter(tuned, tmp_path / "out", tmp_path / "out")
    assert not Path(evil).exists()


@pytest.mark.parametrize("sizes", [{"vocab_size": 10**7}, {"n_layers": 3000}, {"hidden_dim": 10**7}, {"r": 2**20}])
def test_a_config_of_a_huge_model_takes_no_memory(model, tmp_path, sizes):
    with_lora(tiny(layers=1)).save_pretrained(str(tmp_path / "lora"))
    change(tmp_path / "lora" / "adapter_config.json" if "r" in sizes else model / "config.json", **sizes)
    with allowed(tmp_path), pytest.raises(niwaki.RequestError, match="of its tensors"):
        niwaki.load(tmp_path / "lora", base_model=str(model))


def test_offline_nothing_is_asked_of_a_network(model, monkeypatch):
    asked = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: asked.append(arguments))
    niwaki.load(model)
    load_tokenizer(model)
    with pytest.raises(niwaki.RequestError, match="can be reached"):
        niwaki.load("some/model")
    with pytest.raises(niwaki.RequestError, match="nobody/nothing"):
        read_table("nobody/nothing")
    assert asked == []


def evil_text(value):
    """The same plain values with markup in the place of every text."""
    match value:
        case dict():
            return {key: evil_text(inner) for key, inner in value.items()}
        case list() | tuple():
            return [evil_text(inner) for inner in value]
        case str():
            return f"{value}<script>alert('x')</script>\"'&"
    return value


def test_every_text_of_a_page_is_escaped():
    evil = dataclasses.replace(RESULT, **{field.name: evil_text(getattr(RESULT, field.name)) for field in FIELDS})
    html = page([evil])
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html


FIELDS = [field for field in dataclasses.fields(RESULT) if field.name not in ("latency", "schema")]


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [run]",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nstages: *c",
        "[" * 100_000,
        "a: 2001-99-99",
        "a: " + "9" * 5000,
    ],
    ids=["an object", "a bomb", "deep", "no date", "a huge number"],
)
def test_a_recipe_is_plain_values(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text, "utf-8")
    with pytest.raises(niwaki.RequestError, match="recipe") as raised:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_data_nested_too_deeply_are_refused(tmp_path, name):
    (tmp_path / name).write_text('{"text": ' + "[" * 100_000, "utf-8")
    with pytest.raises(niwaki.RequestError, match=r"train_data must be a file that can be read"):
        read_table(str(tmp_path / name))
