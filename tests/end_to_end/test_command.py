"""The command as a user types it, on a tiny random checkpoint with LoRA and a real file of text."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
)

import niwaki
import niwaki.run.demo
from helpers_command import flags_of
from niwaki.adapters import merge_
from tiny import batches, logits

FILES = {"config.json", "model.safetensors", "recipe.yaml", "result.json", "README.md", "report.html", "tokenizer.json"}


def command(*words, cwd=None):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "niwaki", *map(str, words)], capture_output=True, text=True, env=environment, cwd=cwd
    )


def flags(**changes):
    options = {"model": "lora", "train_data": "train.tsv", "eval_data": "eval.tsv", "out": "out", "flops": "0.5"}
    return flags_of(**{**options, **changes})


def request(place, **changes):
    return command("prune", "structured", *flags(**changes), cwd=place)


def test_the_main_job(place, typed):
    first = request(place)
    assert first.returncode == 0, first.stderr
    assert "train: labels 0 is LABEL_0, 1 is LABEL_1" in first.stderr
    assert not {"\r", "\x1b"} & set(first.stderr + first.stdout)  # a log: no bar, no colour
    assert len(first.stderr.splitlines()) <= 30
    wrote, following = first.stdout.splitlines()[-2:]
    assert wrote == "model, result.json, report.html, README.md and recipe.yaml are written to out"
    assert following == "next: niwaki export --model out --to onnx --out out.onnx"
    out = place / "out"
    assert {path.name for path in out.iterdir()} >= FILES
    result = json.loads((out / "result.json").read_text())
    budget = result["stages"][0]["budget"]
    assert budget["requested"] == 0.5
    assert result["pruned"]["flops"] / result["dense"]["flops"] == pytest.approx(budget["achieved"])
    assert budget["achieved"] <= 0.5
    heads = [layer for layer in result["layers"] if layer["kind"] == "attention"]
    assert all(len(site["units"]) == site["kept"] and len(site["scores"]) == site["total"] for site in heads)
    assert result["behaviour"]["rows"] == sum(result["behaviour"]["right"].values()) == 20
    low, high = result["pruned"]["interval"]["accuracy"]
    assert low <= result["pruned"]["quality"]["accuracy"] <= high
    model = niwaki.load(out)
    with safe_open(out / "model.safetensors", framework="pt") as tensors:
        stored = sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118 - not a dict
    assert stored == sum(p.numel() for p in model.parameters())
    again = typed(place, "run", out / "recipe.yaml", "--overwrite", "--quiet")
    assert again == (0, "", "")
    for name, value in niwaki.load(out).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    status, _, err = typed(place, "report", "out", "--out", "page.html")
    assert status == 0, err
    assert "layer.2.ffn" in (place / "page.html").read_text()


def test_measuring_and_timing_are_told_of_as_all_other_work_is(place, typed):
    """Of both models: it takes longer than the pruning of a small one."""
    status, _, err = typed(place, "prune", "structured", *flags(out="told", flops="0.6"))
    assert status == 0, err
    phases = [line.split(":")[0] for line in err.splitlines()]
    assert [phase for phase in phases if phase in ("evaluate", "repair", "time")] == [
        *("evaluate", "repair", "evaluate", "time")
    ]
    words = ("--model", "told", "--against", "base", "--eval-data", "eval.tsv", "--out")
    status, _, err = typed(place, "eval", *words, "held-against")
    assert status == 0, err
    phases = [line.split(":")[0] for line in err.splitlines()]
    assert [phase for phase in phases if phase in ("evaluate", "time")] == ["evaluate", "evaluate", "time"]
    assert typed(place, "eval", *words, "held-against-quietly", "--quiet") == (0, "", "")


def test_the_version(place, typed):
    assert typed(place, "--version") == (0, f"niwaki {niwaki.__version__}\n", "")


def test_the_result_as_json(place, typed):
    """What is on standard output is what stands in the file: nothing more, also where the command would say more."""
    cheap = {"head_score": "random", "neuron_score": "random", "repair": "none"}
    asked = {
        "result.json": ["prune", "structured", *flags(out="said", flops="0.8", json=True, **cheap)],
        "result.json ": ["eval", "--model", "said", "--eval-data", "eval.tsv", "--out", "said-again", "--json"],
        "scores.json": ["score", "--model", "lora", "--train-data", "train.tsv", "--out", "said-scores", "--json"],
    }
    for (name, words), out in zip(asked.items(), ("said", "said-again", "said-scores"), strict=True):
        status, said, err = typed(place, *words)
        assert status == 0, err
        assert json.loads(said) == json.loads((place / out / name.strip()).read_text())


def test_the_adapter_is_kept(place, typed):
    words = flags(out="kept", flops="0.6", keep_adapter=True, text_columns="sentence", quiet=True)
    assert typed(place, "prune", "structured", *words)[0] == 0
    tuned = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(place / "kept"), place / "kept" / "adapter"
    )
    batch = batches(labels=2)[0]
    for whole in (place / "kept" / "adapter", place / "kept"):
        torch.testing.assert_close(logits(niwaki.load(whole), batch), logits(tuned, batch))


def test_a_training_of_all_weights_leaves_no_adapter_to_keep(place, typed):
    data = ("--train-data", "train.tsv", "--eval-data", "eval.tsv")
    status, _, err = typed(place, "finetune", "--model", "body", *data, "--out", "whole", "--full", "--keep-adapter")
    assert status == 2
    assert "keep_adapter needs a model with an adapter, or a stage that trains one, got 'body'" in err


def test_an_adapter_of_which_nothing_is_left_is_not_written(place, typed):
    words = {"only": "attention", "min_heads": 0, "params": "0.4414", "text_columns": "sentence"}
    lora = get_peft_model(
        niwaki.load(place / "base"), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_lin", "v_lin"])
    )
    lora.save_pretrained(str(place / "on-attention"))
    asked = flags(**words, flops=None, model="on-attention", base_model="base", out="none-left")
    status, _, err = typed(place, "prune", "structured", *asked, "--keep-adapter")
    assert status == 2
    assert "keep_adapter must be asked where pruning leaves something that the adapter was put on" in err
    assert not (place / "none-left").exists()
    status, _, err = typed(place, "prune", "structured", *asked)
    assert status == 0, err
    niwaki.load(place / "none-left")


@pytest.mark.parametrize("masks", [False, True])
def test_the_card_says_who_loads_an_adapter_beside_its_base(place, typed, masks):
    kind, budget = ("layer-adaptive", {"sparsity": 0.5}) if masks else ("structured", {"flops": 0.6})
    words = flags(**{"flops": None, **budget}, out=f"beside-{kind}", keep_adapter=True, quiet=True)
    assert typed(place, "prune", kind, *words)[0] == 0
    card = (place / f"beside-{kind}" / "README.md").read_text()
    assert ("or `adapter/` with PEFT" in card) != masks
    assert ("PEFT alone would fill the zeros" in card) == masks


def test_a_latency_budget_is_measured(place, typed):
    words = flags(out="fast", flops=None, latency="1.0", latency_batch_size="2", latency_length="8", overwrite=True)
    assert typed(place, "prune", "structured", *words)[0] == 0
    budget = json.loads((place / "fast" / "result.json").read_text())["stages"][0]["budget"]
    assert budget["kind"] == "latency"
    assert budget["requested"] == 1.0
    assert budget["achieved"] > 0


def test_recovery_makes_the_pruned_model_closer(place, typed):
    dense = merge_(niwaki.load(place / "lora"))
    distances = []
    for epochs in (0, 12):
        words = flags(out=f"recovered-{epochs}", flops="0.4", repair="none", recover_epochs=epochs, quiet=True)
        assert typed(place, "prune", "structured", *words)[0] == 0
        model = niwaki.load(place / f"recovered-{epochs}")
        distances.append(float((logits(model, (batch := batches(labels=2)[0])) - logits(dense, batch)).square().sum()))
    assert distances[1] < distances[0]


def test_finetune_score_eval_and_export(place, typed, monkeypatch):
    def run(*words):
        status, out, err = typed(place, *words)
        assert status == 0, err
        return out

    data = ["--train-data", "learnable.tsv", "--eval-data", "learnable.tsv"]
    said = run(
        "finetune", "--model", "body", *data, "--out", "tuned", "--epochs", 30, "--lora-rank", 4, "--keep-adapter"
    )
    result = json.loads((place / "tuned" / "result.json").read_text())
    assert result["pruned"]["quality"]["accuracy"] > 0.9
    assert merge_(niwaki.load(place / "tuned" / "adapter")).config.id2label == {0: "high", 1: "low"}
    assert said.splitlines()[-1] == (
        "next: niwaki prune structured --model tuned/adapter --train-data learnable.tsv --eval-data learnable.tsv"
        " --out tuned-half --flops 0.5"
    )
    said = run("score", "--model", "tuned/adapter", "--train-data", "learnable.tsv", "--out", "scored")
    scores = json.loads((place / "scored" / "scores.json").read_text())
    assert len(scores["layers"]) == 6
    assert all(len(layer["scores"]) == layer["total"] for layer in scores["layers"])
    assert [linear["name"] for linear in scores["linears"]][-1] == "layer.2.down"
    assert all(x["lowest"] <= x["median"] <= x["highest"] for x in scores["linears"])
    assert "layer.2.ffn" in said
    assert "by fisher" in said
    run("prune", "structured", "--model", "tuned/adapter", *data, "--out", "small", "--flops", "0.6")
    run("eval", "--model", "small", "--against", "tuned/adapter", "--eval-data", "learnable.tsv", "--out", "compared")
    compared = json.loads((place / "compared" / "result.json").read_text())
    pruned = json.loads((place / "small" / "result.json").read_text())["pruned"]
    assert compared["pruned"]["quality"] == pruned["quality"]
    assert compared["dense"]["quality"] == result["pruned"]["quality"]
    assert set(compared["latency"]) >= {"batch_1", "batch_32", "seq_len", "threads", "rounds"}
    said = run("eval", "--model", "small", "--eval-data", "learnable.tsv", "--out", "alone")
    assert "accuracy: " in said
    assert "dense" not in said
    for to in ("merged", "remote-code"):
        run("export", "--model", "small", "--to", to, "--out", f"small-{to}")
        assert torch.equal(
            logits(niwaki.load(place / f"small-{to}"), batches()[0]), logits(niwaki.load(place / "small"), batches()[0])
        )
    shown: list[str] = []
    monkeypatch.setattr(typer, "launch", shown.append)
    for flag in ("--quiet", "--open"):
        said = run("report", "small", "compared", "--out", "both.html", flag)
        assert said == ("" if flag == "--quiet" else "the page of 2 results is written to both.html\n")
    assert shown == [(place / "both.html").as_uri()]
    status, _, err = typed(place, "push", "scored", "me/scores")
    assert (status, "must hold a model" in err) == (2, True)
    for out in ("learnable.tsv", "small/result.json"):
        before = (place / out).read_bytes()
        status, _, err = typed(place, "report", "small", "--out", out)
        assert status == 2
        assert "a page that Niwaki wrote" in err
        assert (place / out).read_bytes() == before
    status, _, err = typed(place, "export", "--model", "small", "--to", "merged", "--out", "m8", "--quantize", "int8")
    assert (status, "quantize must be none for to merged, got 'int8'" in err) == (2, True)
    measured = ["eval", "--model", "small", "--eval-data", "learnable.tsv", "--out", "in-engine"]
    status, _, err = typed(place, *measured, "--quantize", "int8")
    assert (status, "quantize must be none for engine pytorch" in err) == (2, True)
    run(*measured, "--engine", "onnxruntime", "--quantize", "int8")
    there = json.loads((place / "in-engine" / "result.json").read_text())
    assert there["engine"] == "onnxruntime int8"
    status, _, err = typed(place, "export", "--model", "small", "--to", "merged", "--out", "small")
    assert status == 2
    assert "must not hold what is read" in err


def test_the_demo_on_a_tiny_encoder(place, typed, monkeypatch):
    def prepare(folder, seed):
        folder.mkdir()
        shutil.copytree(place / "body", folder / "encoder")
        shutil.copy(place / "learnable.tsv", folder / "train.tsv")
        return folder / "encoder", folder / "train.tsv", folder / "train.tsv"

    monkeypatch.setattr(niwaki.run.demo, "prepare", prepare)
    status, out, err = typed(place, "demo", "--out", "my garden")
    assert status == 0, err
    assert "as fast as dense" in out
    assert {path.name for path in (place / "my garden").iterdir()} == {".niwaki", "data", "finetuned", "half"}
    assert "again: cd 'my garden' && niwaki run half/recipe.yaml --overwrite" in out
    adapter = json.loads((place / "my garden" / "finetuned" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str((place / "my garden" / "finetuned").resolve())
    (place / "my garden" / "mine").write_text("x")
    status, _, err = typed(place, "demo", "--out", "my garden", "--overwrite")
    assert status == 2
    assert "with mine" in err
    again = ["run", "half/recipe.yaml", "--overwrite", "--quiet"]
    before = niwaki.load(place / "my garden" / "half").state_dict()
    assert typed(place / "my garden", *again)[0] == 0
    after = niwaki.load(place / "my garden" / "half").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("moment", "number", "status"), [(" torch._C", signal.SIGINT, 130), (" niwaki.adapters", signal.SIGHUP, 129)]
)
def test_interrupted_while_importing_is_one_line(moment, number, status):
    words = [sys.executable, "-X", "importtime", "-m", "niwaki", "--help"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    while "niwaki.interrupt" not in (line := running.stderr.readline()):
        assert line
    while moment not in running.stderr.readline():
        pass
    running.send_signal(number)
    _, rest = running.communicate(timeout=120)
    assert running.returncode == status
    assert "Traceback" not in rest
    assert rest.endswith("niwaki: interrupted\n")


def test_interrupted_leaves_nothing_but_what_the_next_run_goes_on_from(place):
    before = {path.name for path in place.iterdir()}
    words = [sys.executable, "-m", "niwaki", "prune", "structured", *flags(out="interrupted", recover_epochs="100000")]
    running = subprocess.Popen([str(word) for word in words], cwd=place, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    seen = ""
    while "steps" not in seen:  # what is said of the training that would last for hours
        seen += running.stderr.readline()
    running.send_signal(signal.SIGTERM)  # raises as Ctrl-C does
    _, rest = running.communicate(timeout=120)
    assert running.returncode == 143
    assert "Traceback" not in rest
    assert rest.endswith("niwaki: interrupted\n")
    assert "the same command goes on from there" in rest
    assert {path.name for path in place.iterdir()} == {*before, ".interrupted.niwaki"}
    shutil.rmtree(place / ".interrupted.niwaki")


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
        ({"latency": "0.5"}, ["exactly one", "flops and latency"]),
        ({"head_score": "fischer"}, ["head_score", "fischer", "did you mean 'fisher'"]),
        ({"model": "./nowhere"}, ["model", "nowhere"]),
        ({"model": "body"}, ["without a task head", "finetune first", "label"]),
        ({"model": "albert"}, ["albert", "share"]),
        ({"model": "bloom"}, ["bloom", "distilbert"]),
        ({"model": "quantised"}, ["float weights", "quantised"]),
        ({"model": "truncated"}, ["truncated", "model.safetensors"]),
        ({"base_model": "./nowhere"}, ["nowhere"]),
        ({"base_model": "wide"}, ["base_model", "lora"]),
        ({"metric": "pearson"}, ["metric", "accuracy, f1", "pearson"]),
        ({"out": "full"}, ["out", "full", "overwrite"]),
        ({"out": "full", "overwrite": True}, ["out", "full", "only what Niwaki wrote", "with mine"]),
        ({"out": "train.tsv", "overwrite": True}, ["out must", "train.tsv"]),
        ({"flops": "half"}, ["--flops", "number"]),
        ({"model": "base", "keep_adapter": True}, ["keep_adapter", "adapter", "base"]),
        ({"out": ".", "overwrite": True}, ["out must not hold what is read", "lora"]),
        ({"out": "base", "overwrite": True}, ["out must not hold what is read", "base"]),
        ({"eval_data": "unlabelled.txt", "metric": "f1"}, ["eval_data must have labels", "unlabelled.txt"]),
        ({"device": "banana"}, ["device", "banana"]),
        ({"model": "wordless"}, ["tokenizer", "wordless"]),
        ({"out": "train.tsv/x"}, ["out", "can be made", "train.tsv/x"]),
        ({"out": "d1/d2/o", "model": "bloom"}, ["bloom"]),
        ({"flops": None, "latency": "0.9", "latency_length": "99"}, ["latency_length", "at most 40", "99"]),
        ({"recover_epochs": "-1"}, ["recover_epochs", "at least 0"]),
        ({"seed": "-1"}, ["seed", "0 to 4294967295", "-1"]),
        ({"min_heads": "5"}, ["min_heads", "at most 4", "5"]),
        ({"model": "padless"}, ["padding token", "padless", "pad_token"]),
        ({"model": "wordy"}, ["tokenizer", "below 30", "got id"]),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(place, typed, changes, words):
    before = {path.name for path in place.iterdir()}
    status, _, err = typed(place, "prune", "structured", *flags(**{"out": "refused", **changes}))
    lines = [line for line in err.splitlines() if line.startswith("niwaki:")]
    assert status == 2, err
    assert len(lines) == 1
    assert "Traceback" not in err
    assert all(word in lines[0] for word in words), lines[0]
    assert {path.name for path in place.iterdir()} == before
    assert [path.name for path in (place / "full").iterdir()] == ["mine"]


@pytest.mark.parametrize("compact", [False, True])
def test_layer_adaptive(place, typed, compact):
    out = f"sparse-{compact}"
    flags = ["--model", "lora", "--train-data", "train.tsv", "--eval-data", "eval.tsv", "--sparsity", "0.7"]
    words = ["prune", "layer-adaptive", *flags, "--out", out, *(["--compact"] if compact else [])]
    status, _, err = typed(place, *words)
    assert status == 0, err
    result = json.loads((place / out / "result.json").read_text())
    budget, model = result["stages"][0]["budget"], niwaki.load(place / out)
    weights = sum(layer["total"] for layer in result["layers"])
    assert {layer["kind"] for layer in result["layers"]} == {"linear"}
    assert budget["kind"] == "sparsity"
    assert budget["achieved"] == pytest.approx(0.7, abs=1 / weights)
    zeros = sum(int((model.get_submodule(n).weight == 0).sum()) for n, m in model.named_modules() if hasattr(m, "mask"))
    assert zeros == round(0.7 * weights) == result["pruned"]["zeros"]
    if compact:
        stored = (place / out / "model.safetensors").stat().st_size
        assert result["pruned"]["size_bytes"] == stored
        measured = ["eval", "--model", out, "--against", "lora", "--eval-data", "eval.tsv", "--out", "packed", "--json"]
        status, said, err = typed(place, *measured)
        assert (status, json.loads(said)["pruned"]["size_bytes"]) == (0, stored), err
        assert json.loads(said)["dense"]["size_bytes"] == result["dense"]["size_bytes"]
    status, _, err = typed(place, "run", f"{out}/recipe.yaml", "--overwrite", "--quiet")
    assert status == 0, err
    for name, value in niwaki.load(place / out).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sparsity", "1.5"], ["sparsity", "[0, 1)", "1.5"]),
        (["--sparsity", "0.9", "--max-sparsity", "0.5"], ["sparsity", "0 to 0.5 with", "got 0.9"]),
        (["--sparsity", "0.5", "--pattern", "2:5", "--allocation", "uniform"], ["sparsity must be 0.6"]),
        (["--sparsity", "0.5", "--pattern", "3x1"], ["pattern 3x1", "layer.0.query"]),
        (["--sparsity", "0.5", "--pattern", "two"], ["pattern", "2:4", "'two'"]),
        (["--sparsity", "0.5", "--layer-score", "fischer"], ["layer_score", "did you mean 'fisher'"]),
    ],
)
def test_wrong_sparse_requests_are_one_line(place, typed, flags, words):
    data = ["--model", "lora", "--train-data", "train.tsv", "--eval-data", "eval.tsv", "--out", "no"]
    status, _, err = typed(place, "prune", "layer-adaptive", *data, *flags)
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("niwaki:")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]
    assert not (place / "no").exists()


def test_a_weight_that_is_not_finite_is_failed_work(place, typed):
    status, _, err = typed(place, "prune", "structured", *flags(model="broken", out="refused"))
    assert status == 3
    assert "layer.1.ffn" in err
    assert not (place / "refused").exists()


def test_float16_is_said_to_become_float32(place, typed, tmp_path):
    shutil.copytree(place / "base", tmp_path / "half")
    AutoModelForSequenceClassification.from_pretrained(place / "base").half().save_pretrained(tmp_path / "half")
    options = {"model": tmp_path / "half", "eval_data": "eval.tsv"}
    status, _, err = typed(place, "eval", **options, dtype="auto", out=tmp_path / "auto")
    assert status == 0, err
    assert "model: its files hold float16, which is held and written as float32" in err
    assert "float16" not in typed(place, "eval", **options, out=tmp_path / "plain")[2]


@pytest.mark.parametrize("words", [["prune", "magnitude"], ["prune", "--model", "base"]])
def test_where_a_technique_is_missing_all_are_listed(place, typed, words):
    status, _, err = typed(place, *words)
    assert status == 2
    assert err.endswith("What there is: structured, layer-adaptive, dynamic, vocabulary\n")


@pytest.mark.parametrize("words", [[], ["prune"]])
def test_without_words_the_help_is_all_that_is_said(place, typed, words):
    status, said, err = typed(place, *words)
    assert (status, "niwaki: " in err) == (2, False)
    assert "structured" in said + err or "prune" in said + err
