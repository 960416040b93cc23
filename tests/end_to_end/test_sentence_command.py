"""Sentence encoders, bodies without a head and models that choose among texts, as the command takes them."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.checkpoint import plain_pooling
from tiny import configs

TEXTS = ("a good bright film", "a bad dull plot", "the plot is very very bright .", "not good")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    words = tiny_tokenizer()
    for kind in ("BertModel", "BertForMultipleChoice", "BertForMaskedLM"):
        torch.manual_seed(0)
        getattr(transformers, kind)(configs()["bert"]).save_pretrained(place / kind)
        words.save_pretrained(place / kind)
    torch.manual_seed(0)
    AutoModel.from_config(configs()["bert"]).save_pretrained(place / "encoder")
    words.save_pretrained(place / "encoder")
    plain_pooling("cls", 32, 20).write(place / "encoder")
    for name, count in (("train", 24), ("eval", 16)):
        rows = [f"{TEXTS[i % 4]}\t{TEXTS[(i * 3 + 1) % 4]} film\t{i % 5}.5" for i in range(count)]
        (place / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
        (place / f"{name}.pairs.tsv").write_text("\n".join(["sentence1\tsentence2", *(r[:-4] for r in rows)]) + "\n")
        rows = [{"query": TEXTS[i % 4], "positive": f"{TEXTS[i % 4]} film"} for i in range(count)]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (place / f"{name}.txt").write_text("\n".join(TEXTS[i % 4] for i in range(count)))
        rows = [
            {"question": TEXTS[i % 4], "choices": ["good", "very bad film", "a plot"], "answer": i % 3}
            for i in range(count)
        ]
        (place / f"{name}.choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


@pytest.fixture
def command(place, typed):
    """Run a command: exit status, standard output, error lines."""

    def run(*words, model, data="tsv", train=None, **flags):
        sources = ["--eval-data", f"eval.{data}"]
        sources += [] if words[0] == "eval" else ["--train-data", f"train.{train or data}"]
        sources = ["--train-data", f"train.{data}"] if words[0] == "score" else sources
        return typed(place, *words, "--model", model, *sources, "--max-length", "16", **flags)

    return run


def result(place, name):
    return json.loads((place / name / "result.json").read_text())


def test_a_sentence_encoder_through_every_command(place, command, typed):
    """Calibrated on text alone, measured on scored pairs; the library reads what comes out."""
    budgets = {"structured": {"flops": "0.6", "recover_epochs": "1"}, "layer-adaptive": {"sparsity": "0.5"}}
    budgets["dynamic"] = {"sparsity": "0.5", "epochs": "3", "interval": "1"}
    for kind, budget in budgets.items():
        status, out, err = command("prune", kind, model="encoder", train="txt", out=kind, **budget)
        assert status == 0, err
        found = result(place, kind)
        assert set(found["pruned"]["quality"]) == {"spearman", "pearson"}
        assert set(found["fidelity"]) == {"cosine"}
        assert "spearman" in out
        card = (place / kind / "README.md").read_text()
        assert "library_name: sentence-transformers" in card
        assert "| spearman |" in card
        encoder = SentenceTransformer(str(place / kind), device="cpu")
        assert encoder.encode(["a good film"]).shape == (1, 32)
    status, _, err = command("eval", model="structured", data="jsonl", out="found", against="encoder")
    assert status == 0, err
    assert set(result(place, "found")["pruned"]["quality"]) == {"recall_at_1", "recall_at_10", "mrr"}
    status, _, err = command("score", model="encoder", data="txt", out="scores")
    assert status == 0, err
    status, _, err = typed(place, "export", "--model", "structured", "--to", "remote-code", "--out", "code")
    assert status == 0, err
    vectors = [
        SentenceTransformer(str(place / name), device="cpu", trust_remote_code=name == "code").encode(TEXTS)
        for name in ("structured", "code")
    ]
    assert abs(vectors[0] - vectors[1]).max() < 1e-6


def test_the_vocabulary_of_a_sentence_encoder(place, command):
    status, _, err = command("prune", "vocabulary", model="encoder", data="txt", out="words")
    assert status == 0, err
    assert result(place, "words")["fidelity"]["cosine"] == pytest.approx(1.0, abs=1e-6)
    wanted, found = (SentenceTransformer(str(place / n), device="cpu").encode(TEXTS) for n in ("encoder", "words"))
    assert abs(wanted - found).max() < 1e-6


def test_a_body_by_its_states_and_by_a_pooling(place, command):
    status, _, err = command("prune", "structured", model="BertModel", data="txt", out="body", flops="0.6")
    assert status == 0, err
    assert "no labels, so fidelity to the dense model is all that is measured" in err
    assert type(niwaki.load(place / "body")).__name__ == "BertModel"
    assert not (place / "body" / "modules.json").exists()
    for model in ("BertModel", "BertForMaskedLM"):  # what it was pretrained on is left behind
        status, _, err = command("prune", "structured", model=model, out=f"pooled-{model}", flops="0.6", pooling="mean")
        assert status == 0, err
        assert "a new task head" not in err
        assert "spearman" in result(place, f"pooled-{model}")["pruned"]["quality"]
        assert SentenceTransformer(str(place / f"pooled-{model}"), device="cpu").encode("a plot").shape == (32,)
        again = {"model": f"pooled-{model}", "against": model, "out": f"against-{model}"}
        status, _, err = command("eval", **again, pooling="mean")
        assert status == 0, err
        for name in ("dense", "pruned"):
            first, second = (result(place, f"{folder}-{model}")[name] for folder in ("pooled", "against"))
            assert first["quality"] == second["quality"]
        status, _, err = command("eval", **{**again, "out": "other"}, pooling="cls")
        assert (status, "for a sentence encoder that has its own" in err) == (2, True)
    status, _, err = command("score", model="BertForMaskedLM", data="txt", task="embedding", out="body-scores")
    assert status == 0, err


def test_choices_from_files(place, command):
    status, _, err = command("finetune", model="BertModel", data="choices.jsonl", out="chooser")
    assert status == 0, err
    assert type(niwaki.load(place / "chooser")).__name__ == "BertForMultipleChoice"
    for kind, budget in {"structured": {"flops": "0.6"}, "dynamic": {"sparsity": "0.5", "interval": "1"}}.items():
        status, _, err = command("prune", kind, model="chooser", data="choices.jsonl", out=f"chooser-{kind}", **budget)
        assert status == 0, err
        found = result(place, f"chooser-{kind}")
        assert set(found["pruned"]["quality"]) == {"accuracy"}
        assert set(found["fidelity"]) == {"agreement", "kl"}


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["eval"], {"model": "BertModel"}, "--pooling mean: measure pairs by the cosine"),
        (["eval"], {"model": "BertModel", "data": "txt"}, "must give one vector a text to be measured"),
        (["eval"], {"model": "encoder", "data": "txt"}, "eval_data must have labels"),
        (["eval"], {"model": "encoder", "data": "pairs.tsv"}, "eval_data of pairs must have a score"),
        (["eval"], {"model": "encoder", "metric": "accuracy"}, "metric must be one of spearman"),
        (["eval"], {"model": "encoder", "metric": "mrr"}, "metric must be one of pearson, spearman for these"),
        (["eval"], {"model": "encoder", "pooling": "mean"}, "got 'mean' for a sentence encoder"),
        (["eval"], {"model": "BertForMultipleChoice", "pooling": "mean"}, "pooling must be asked of a model without"),
        (["eval"], {"model": "BertModel", "pooling": "max"}, "pooling must be one of cls, mean"),
        (["eval"], {"model": "BertForMultipleChoice"}, "must be prompts with choices (question, choices, answer)"),
        (["eval"], {"model": "encoder", "data": "choices.jsonl"}, "got prompts with choices"),
        (["prune", "structured"], {"model": "BertModel", "flops": "0.5"}, "finetune first: train a head on them"),
        (["prune", "structured"], {"model": "encoder", "keep_quality": "0.9"}, "keep_quality must be a budget for a"),
        (["finetune"], {"model": "encoder", "data": "txt"}, "train_data must have labels"),
        (["finetune"], {"model": "encoder", "data": "jsonl"}, "train_data must have labels"),
    ],
)  # fmt: skip
def test_what_contradicts_is_one_line(place, command, words, options, said):
    status, _, err = command(*words, out="refused", **options)
    (line,) = [line for line in err.splitlines() if line.startswith("niwaki:")]
    assert status == 2
    assert said in line
    assert not (place / "refused").exists()
