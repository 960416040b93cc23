"""Language models through every command, as a user types it: windows of text in, perplexity out."""

from __future__ import annotations

import json
import random

import pytest
import torch

import niwaki
from helpers_text import WORDS, tiny_tokenizer
from helpers_tokenizers import tokenizer_of
from niwaki.adapters import effective_weight
from niwaki.anatomy import linears_of, sites_of
from niwaki.surgery import cut_
from tiny import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    niwaki.save(tiny("llama"), place / "llama", tiny_tokenizer())
    niwaki.save(tiny("bert"), place / "bert", tiny_tokenizer())
    draw = random.Random(0)
    for name, length in (("train", 900), ("eval", 300)):
        words = [word for word in WORDS if word.isalpha()]
        text = " ".join(draw.choice(words) for _ in range(length))
        (place / f"{name}.txt").write_text(text.replace(" film", "\n\nfilm"))
    (place / "again.txt").write_text((place / "train.txt").read_text())
    (place / "blank.txt").write_text("\n \n")
    (place / "word.txt").write_text("film\n")
    return place


@pytest.fixture
def niwaki_command(place, typed):
    """Run a command on the language model: exit status, standard output, error lines."""

    def run(*words, **changes):
        options = {"model": "llama", "train_data": "train.txt", "eval_data": "eval.txt", "max_length": "16"}
        return typed(place, *words, **{**options, **changes})

    return run


def result_of(place, out):
    return json.loads((place / out / "result.json").read_text())


def test_structured(place, niwaki_command):
    status, out, err = niwaki_command("prune", "structured", out="half", flops="0.5")
    assert status == 0, err
    assert "train: 900 tokens in 57 windows of 16, 16 apart, no first token (BOS)" in err
    assert "perplexity" in out
    result = result_of(place, "half")
    assert set(result["pruned"]["quality"]) == {"perplexity", "nats_per_token", "bits_per_token"}
    assert result["data"]["eval"]["context_length"] == 16
    assert result["data"]["eval"]["tokens"] == 300
    assert 0.4 < result["stages"][0]["budget"]["achieved"] <= 0.5
    model = niwaki.load(place / "half")
    assert sum(site.units for site in sites_of(model)) < 3 * (4 + 48)
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, eos_token_id=None).shape == (1, 7)
    status, out, err = niwaki_command(
        "eval", model="half", against="llama", train_data=None, out="compared", stride="4"
    )
    assert status == 0, err
    assert result_of(place, "compared")["data"]["eval"]["stride"] == 4


def test_query_heads_in_bfloat16_within_memory(place, niwaki_command):
    options = {"flops": "0.6", "head_unit": "query-head", "dtype": "bfloat16", "max_memory": "64GiB"}
    status, _, err = niwaki_command("prune", "structured", out="thin", **options)
    assert status == 0, err
    assert result_of(place, "thin")["stages"][0]["budget"]["achieved"] <= 0.6
    model = niwaki.load(place / "thin", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(site.units in (0, 4) for site in sites_of(model) if site.kind == "attention")


@pytest.mark.parametrize(
    "options", [{}, {"allocation": "uniform", "weight_score": "wanda", "repair": "none"}, {"pattern": "2:4"}]
)
def test_layer_adaptive(place, niwaki_command, options):
    options = {"sparsity": "0.5", **options} | ({"allocation": "uniform"} if "pattern" in options else {})
    status, _, err = niwaki_command("prune", "layer-adaptive", out="sparse", overwrite=True, **options)
    assert status == 0, err
    linears = linears_of(niwaki.load(place / "sparse"))
    total = sum(linear.size for linear in linears)
    assert sum(int((effective_weight(linear.module) == 0).sum()) for linear in linears) == total // 2


def test_finetuning_then_dynamic_sparsity(place, niwaki_command):
    status, _, err = niwaki_command("finetune", out="tuned", epochs="3", learning_rate="3e-3", keep_adapter=True)
    assert status == 0, err
    found = result_of(place, "tuned")
    assert found["pruned"]["quality"]["perplexity"] < found["dense"]["quality"]["perplexity"]
    status, _, err = niwaki_command(
        "prune", "dynamic", model="tuned/adapter", out="moved", sparsity="0.5", interval="1"
    )
    assert status == 0, err
    assert result_of(place, "moved")["stages"][0]["budget"]["achieved"] == pytest.approx(0.5, abs=1e-4)


def test_gguf(place, niwaki_command):
    model = tiny("llama")
    model.resize_token_embeddings(620)
    niwaki.save(model, place / "bytes", tokenizer_of("byte-level"))
    plan = {site.name: torch.arange(site.units - site.layer) for site in sites_of(model)}
    cut_(model, plan)
    niwaki.save(model, place / "cut", tokenizer_of("byte-level"))
    options = {"model": "cut", "to": "gguf", "quantize": "f16", "train_data": None}
    status, _, err = niwaki_command("export", out="few", max_drop="0.1", **options | {"eval_data": None})
    assert (status, "max_drop and eval_data must be asked together" in err) == (2, True)
    status, _, err = niwaki_command("export", out="few", max_drop="-1", **options)
    assert (status, "max_drop -1 is the largest share of perplexity that may be lost, got" in err) == (2, True)
    assert not (place / "few").exists()
    status, _, err = niwaki_command("export", out="cut-f16", max_drop="0.01", **options)
    assert status == 0, err
    assert "f16: perplexity" in err
    assert "llama.cpp: perplexity of a trial text" in err
    assert {path.name for path in (place / "cut-f16").iterdir()} == {".niwaki", "model-F16.gguf"}
    status, _, err = niwaki_command("export", out="cut-f16", max_drop="0.01", **options)
    assert (status, "out must be a new or empty folder" in err, "f16" in err.replace("cut-f16", "")) == (2, True, False)
    engine = {"engine": "llama.cpp", "quantize": "f16", "train_data": None, "model": "cut", "against": "bytes"}
    status, out, err = niwaki_command("eval", out="in-llama-cpp", **engine)
    assert status == 0, err
    there = result_of(place, "in-llama-cpp")
    assert there["engine"] == "llama.cpp f16"
    assert "decode" in there["latency"]
    table = there["engines"]
    assert [(row["model"], row["quantize"]) for row in table] == [
        ("dense", "none"), ("dense", "f16"), ("pruned", "none"), ("pruned", "f16")
    ]  # fmt: skip
    assert table[3]["quality"] == there["pruned"]["quality"]
    assert table[1]["size_bytes"] < 0.6 * table[0]["size_bytes"]
    assert all(row["memory_bytes"] > 0 and set(row["latency"]) == {"batch_1", "batch_32", "decode"} for row in table)
    assert "decode, tokens/s" in out
    assert "pruned f16" in (place / "in-llama-cpp" / "report.html").read_text()


def test_recovery_and_a_latency_budget(place, niwaki_command):
    losses = []
    for epochs in ("0", "6"):
        status, _, err = niwaki_command(
            "prune", "structured", out="taught", flops="0.5", repair="none", recover_epochs=epochs, overwrite=True
        )
        assert status == 0, err
        losses.append(result_of(place, "taught")["pruned"]["quality"]["nats_per_token"])
    assert losses[1] < losses[0]
    status, _, err = niwaki_command(
        "prune", "structured", out="fast", latency="1.0", latency_batch_size="2", latency_length="8"
    )
    assert status == 0, err
    assert result_of(place, "fast")["stages"][0]["budget"]["kind"] == "latency"


def test_scores(place, niwaki_command):
    for score in ("reconstruction", "attention-variance", "taylor"):
        neurons = "activation" if score == "attention-variance" else score
        status, _, err = niwaki_command(
            "score", eval_data=None, out="scores", head_score=score, neuron_score=neurons, overwrite=True
        )
        assert status == 0, err
        layers = json.loads((place / "scores" / "scores.json").read_text())["layers"]
        assert [layer["total"] for layer in layers] == [4, 48] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_data": "again.txt"}, ["eval_data", "another text", "--same-data", "again.txt"]),
        ({"eval_data": "train.txt"}, ["eval_data", "another text"]),
        ({"max_length": "99"}, ["max_length", "at most 40", "99"]),
        ({"stride": "17"}, ["stride", "1 to 16", "17"]),
        ({"train_data": "blank.txt"}, ["train_data", "row", "blank.txt"]),
        ({"train_data": "word.txt"}, ["train_data", "two tokens", "1"]),
        ({"model": "bert", "metric": "f1"}, ["eval_data must have labels", "eval.txt"]),
        ({"max_memory": "1MB"}, ["max_memory", "at least", "GiB", "batch_size"]),
        ({"max_memory": "much"}, ["max_memory", "8GiB", "much"]),
        ({"dtype": "float16"}, ["dtype", "bfloat16", "float16"]),
        ({"head_unit": "head"}, ["head_unit", "query-head", "head"]),
        ({"metric": "accuracy"}, ["metric", "perplexity", "language model", "accuracy"]),
        ({"repair": "bias"}, ["repair", "least-squares", "bias"]),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(place, niwaki_command, changes, words):
    status, _, err = niwaki_command("prune", "structured", **{"out": "refused", "flops": "0.5", **changes})
    lines = [line for line in err.splitlines() if "niwaki:" in line]
    assert status == 2, err
    assert all(word in lines[0] for word in words), lines[0]
    assert not (place / "refused").exists()


def test_the_same_data_where_it_is_asked_for(niwaki_command):
    status, _, err = niwaki_command(
        "prune", "layer-adaptive", out="same", sparsity="0.3", eval_data="train.txt", same_data=True
    )
    assert status == 0, err
