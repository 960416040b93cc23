"""The command as a user types it, on a tiny random checkpoint with LoRA and a real file of text."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import niwaki
from tiny import VOCABULARY, tiny, with_lora

WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]
FILES = {"config.json", "model.safetensors", "recipe.yaml", "result.json", "README.md", "report.html", "tokenizer.json"}


def command(*words, cwd=None):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "niwaki", *map(str, words)], capture_output=True, text=True, env=environment, cwd=cwd
    )


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=40
    )
    base = tiny(labels=2)
    niwaki.save(base, place / "base", fast)
    with_lora(base).save_pretrained(str(place / "lora"))
    config = json.loads((place / "lora" / "adapter_config.json").read_text())
    (place / "lora" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("train", 40), ("eval", 20)):
        lines = ["sentence\tlabel"]
        for i in range(rows):
            words = torch.randint(0, len(WORDS), (int(torch.randint(3, 12, (), generator=generator)),))
            lines.append(" ".join(WORDS[w] for w in words) + f"\t{i % 2}")
        (place / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (place / "empty.tsv").write_text("sentence\tlabel\n")
    (place / "labels.tsv").write_text("sentence\tlabel\nw1 w2\t7\n")
    (place / "full").mkdir()
    (place / "full" / "mine").write_text("x")
    return place


def request(place, **changes):
    options = {"model": "lora", "train-data": "train.tsv", "eval-data": "eval.tsv", "out": "out", "flops": "0.5"}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    flags = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return command("prune", "structured", *flags, cwd=place)


def test_the_main_job(place):
    done = request(place)
    assert done.returncode == 0, done.stderr
    out = place / "out"
    assert {path.name for path in out.iterdir()} >= FILES
    result = json.loads((out / "result.json").read_text())
    budget = result["stages"][0]["budget"]
    assert budget["requested"] == 0.5
    assert result["pruned"]["flops"] / result["dense"]["flops"] == pytest.approx(budget["achieved"])
    assert budget["achieved"] <= 0.5
    model = niwaki.load(out)
    with safe_open(out / "model.safetensors", framework="pt") as tensors:
        stored = sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118 - not a dict
    assert stored == sum(p.numel() for p in model.parameters())
    again = command("run", out / "recipe.yaml", "--overwrite", "--quiet", cwd=place)
    assert again.returncode == 0, again.stderr
    for name, value in niwaki.load(out).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    page = command("report", "out", "--out", "page.html", cwd=place)
    assert page.returncode == 0, page.stderr
    assert "layer.2.ffn" in (place / "page.html").read_text()


def test_the_adapter_is_kept(place):
    done = request(place, out="kept", keep_adapter=None)
    assert done.returncode == 0, done.stderr
    flags = ["--model", "lora", "--train-data", "train.tsv", "--eval-data", "eval.tsv", "--flops", "0.6"]
    done = command("prune", "structured", *flags, "--out", "with-adapter", "--keep-adapter", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "with-adapter" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_data": "none.tsv"}, ["none.tsv", "existing"]),
        ({"train_data": "empty.tsv"}, ["empty.tsv", "at least one row"]),
        ({"train_data": "labels.tsv"}, ["labels", "0 to 1", "got 7"]),
        ({"label_column": "nope"}, ["label_column", "nope", "sentence, label"]),
        ({"flops": "1.5"}, ["flops", "(0, 1]", "1.5"]),
        ({"flops": "0.001"}, ["flops", "at least", "0.001"]),
        ({"params": "0.5"}, ["exactly one", "flops and params"]),
        ({"head_score": "fischer"}, ["head_score", "fischer", "did you mean 'fisher'"]),
        ({"model": "./nowhere"}, ["model", "nowhere"]),
        ({"base_model": "./nowhere"}, ["nowhere"]),
        ({"out": "full"}, ["out", "full", "overwrite"]),
        ({"flops": "half"}, ["--flops", "number"]),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(place, changes, words):
    before = {path.name for path in place.iterdir()}
    done = request(place, **{"out": "refused", **changes})
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("niwaki:")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert {path.name for path in place.iterdir()} == before
    assert [path.name for path in (place / "full").iterdir()] == ["mine"]


@pytest.mark.parametrize("compact", [False, True])
def test_layer_adaptive(place, compact):
    out = f"sparse-{compact}"
    flags = ["--model", "lora", "--train-data", "train.tsv", "--eval-data", "eval.tsv", "--sparsity", "0.7"]
    done = command("prune", "layer-adaptive", *flags, "--out", out, *(["--compact"] if compact else []), cwd=place)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / out / "result.json").read_text())
    budget, model = result["stages"][0]["budget"], niwaki.load(place / out)
    weights = sum(layer["total"] for layer in result["layers"])
    assert {layer["kind"] for layer in result["layers"]} == {"linear"}
    assert budget["kind"] == "sparsity"
    assert budget["achieved"] == pytest.approx(0.7, abs=1 / weights)
    zeros = sum(int((model.get_submodule(n).weight == 0).sum()) for n, m in model.named_modules() if hasattr(m, "mask"))
    assert zeros == round(0.7 * weights) == result["pruned"]["zeros"]
    if compact:
        assert result["pruned"]["size_bytes"] == (place / out / "model.safetensors").stat().st_size
    again = command("run", f"{out}/recipe.yaml", "--overwrite", "--quiet", cwd=place)
    assert again.returncode == 0, again.stderr
    for name, value in niwaki.load(place / out).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sparsity", "1.5"], ["sparsity", "[0, 1)", "1.5"]),
        (["--sparsity", "0.9", "--max-sparsity", "0.5"], ["sparsity", "0.0000 to 0.5000", "0.9"]),
        (["--sparsity", "0.5", "--pattern", "2:5", "--allocation", "uniform"], ["sparsity must be 0.6"]),
        (["--sparsity", "0.5", "--pattern", "3x1"], ["pattern 3x1", "layer.0.query"]),
        (["--sparsity", "0.5", "--pattern", "two"], ["pattern", "2:4", "'two'"]),
        (["--sparsity", "0.5", "--layer-score", "fischer"], ["layer_score", "did you mean 'fisher'"]),
    ],
)
def test_wrong_sparse_requests_are_one_line(place, flags, words):
    data = ["--model", "lora", "--train-data", "train.tsv", "--eval-data", "eval.tsv", "--out", "no"]
    done = command("prune", "layer-adaptive", *data, *flags, cwd=place)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("niwaki:")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]
    assert not (place / "no").exists()
