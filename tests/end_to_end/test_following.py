"""Every command names the one that people run next: that one runs, on what the first one read and as it read it."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
import transformers

import niwaki
from helpers_text import letter_tokenizer, tiny_tokenizer
from niwaki.run.following import form_of
from tiny import configs, shorten_, tiny

TEXTS = ("a good bright film", "a bad dull plot", "the plot is very very bright .", "not good")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("a place")
    for kind in ("BertForSequenceClassification", "BertModel"):
        config = configs()["bert"]
        shorten_(config, 1)
        torch.manual_seed(0)
        getattr(transformers, kind)(config).save_pretrained(place / kind)
        tiny_tokenizer().save_pretrained(place / kind)
    for name in ("train", "eval"):
        rows = [f"{'good' if i % 2 else 'bad'}\t{TEXTS[i % 4]}{' film' * (i % 5)}" for i in range(24)]
        (place / f"{name} it.tsv").write_text("\n".join(["my verdict\tmy text", *rows]) + "\n")
    (place / "texts.txt").write_text("\n".join(TEXTS * 4))
    return place


ODD = ["--text-columns", "my text", "--label-column", "my verdict", "--max-length", "16", "--batch-size", "8"]
TRAIN = ["--train-data", "train it.tsv"]
DATA = [*TRAIN, "--eval-data", "eval it.tsv"]
BERT = ["--model", "BertForSequenceClassification", "--label-names", "bad", "good"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", *BERT, *TRAIN], "prune structured"),
        (["plan", "structured", *BERT, *TRAIN, "--seed", "3", "--calibration-samples", "9"], "--flops 0.5"),
        (["plan", "structured", *BERT, *TRAIN, "--min-heads", "4"], "--flops 0.6"),
        (["plan", "structured", *BERT, *TRAIN, "--latency", "1.0", "--latency-length", "9"], "--head-unit group"),
        (["plan", "structured", *BERT, *TRAIN, "--params", "0.7"], "--params 0.7"),
        (["plan", "layer-adaptive", *BERT, *TRAIN, "--only", "ffn", "--max-sparsity", "0.7"], "--sparsity 0.4"),
        (["plan", "layer-adaptive", *BERT, *TRAIN, "--pattern", "1:4"], "--sparsity 0.75"),
        (["finetune", "--model", "BertModel", *DATA, "--keep-adapter"], "/adapter"),
        (["finetune", "--model", "BertModel", *DATA, "--full"], "prune structured"),
        (["export", *BERT, "--to", "onnx", "--quantize", "int8"], "--engine onnxruntime"),
        (["export", *BERT, *TRAIN, "--to", "openvino", "--quantize", "int8-static"], "--quantize int8-static"),
    ],
)
def test_the_next_command_runs(place, typed, words, said, request):
    out = request.node.callspec.id.replace("/", "-")
    status, printed, err = typed(place, *words, *ODD, "--out", out)
    assert status == 0, err
    (line,) = [line for line in printed.splitlines() if line.startswith("next: niwaki ")]
    assert said in line
    assert ("the adapter is merged" in printed) is False  # it is kept, or there is none
    following = ["eval it.tsv" if word == "E" else word for word in shlex.split(line)[2:]]
    following[following.index("--out") + 1] = f"{out} next"
    status, _, err = typed(place, *following)
    assert status == 0, err
    if words[0] == "plan" and "--latency" not in words:
        assert "observe:" not in err  # on the rows that it was made from


def test_what_is_measured_without_labels_is_said_in_a_log(place, typed):
    data = ["--train-data", "texts.txt", "--eval-data", "texts.txt", "--max-length", "16"]
    cheap = ["--head-score", "random", "--neuron-score", "random", "--repair", "none", "--flops", "0.5"]
    status, said, err = typed(place, "prune", "structured", *BERT, *data, *cheap, "--out", "unlabelled")
    assert status == 0, err
    found = json.loads((place / "unlabelled" / "result.json").read_text())["fidelity"]
    assert f"agreement to dense: {found['agreement']:.4f}\nkl to dense: {found['kl']:.4f}\n" in said


def test_a_model_is_not_held_against_one_of_other_figures(place, typed):
    niwaki.save(tiny("bert", labels=1, layers=1), place / "numbers", tiny_tokenizer())
    rows = [f"{TEXTS[i % 4]}\t{i % 2}" for i in range(24)]
    (place / "both.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    both = ["--eval-data", "both.tsv", "--max-length", "16", "--out", "apart"]
    status, _, err = typed(place, "eval", "--model", "BertForSequenceClassification", "--against", "numbers", *both)
    assert status == 2
    assert "against must be measured as the model is, by accuracy, f1, matthews_correlation, got" in err
    status, _, err = typed(place, "eval", *BERT[:2], *both)
    assert status == 0, err


@pytest.mark.parametrize(
    ("family", "uneven", "form"),
    [
        ("llama", False, "gguf"),
        ("llama", True, "gguf"),
        ("qwen3", False, "gguf"),
        ("qwen3", True, "onnx"),
        ("opt", False, "onnx"),
        ("llama4_text", False, "merged"),
        ("bert", False, "onnx"),
    ],
)
def test_the_form_is_one_that_takes_the_model(tmp_path, family, uneven, form):
    from niwaki.anatomy import sites_of
    from niwaki.surgery import cut_

    model = tiny(family)
    if uneven:
        cut_(model, {site.name: torch.arange(site.units - site.layer) for site in sites_of(model)})
    niwaki.save(model, tmp_path / "model", letter_tokenizer())
    assert form_of(tmp_path / "model") == form
    # llama.cpp merges pairs: of other tokenizers, as that of the models that are not for it, there is no such file.
    niwaki.save(model, tmp_path / "words", tiny_tokenizer())
    assert form_of(tmp_path / "words") == ("onnx" if form == "gguf" else form)
    assert form_of(tmp_path / "nothing") == "onnx"
