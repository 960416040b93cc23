"""What a model is for, as the command settles it: by its checkpoint, by --task, and refused where data say another."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import niwaki
from helpers_text import tiny_tokenizer
from tiny import configs, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    words = tiny_tokenizer()
    niwaki.save(tiny("llama"), place / "llama", words)
    for kind in ("BertForTokenClassification", "BertForMultipleChoice", "BertForMaskedLM", "BertModel"):
        torch.manual_seed(0)
        getattr(transformers, kind)(configs()["bert"]).save_pretrained(place / kind)
        words.save_pretrained(place / kind)
    for kind in ("LlamaForSequenceClassification", "GPT2ForSequenceClassification"):
        config = configs()["llama" if kind.startswith("L") else "gpt2"]
        config.num_labels, config.pad_token_id = 2, 3  # [SEP], where the tokenizer pads with [PAD]
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        model.save_pretrained(place / kind)
        words.save_pretrained(place / kind)
        if kind.startswith("L"):
            adapter = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
            get_peft_model(model, adapter).save_pretrained(str(place / "lora"))
    path = place / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "../llama"}))
    texts = ("a good bright film", "a bad dull plot", "the plot is very very bright .", "not good")
    rows = [f"{texts[i % 4]}{' film' * (i % 5)}\t{1 - i % 2}" for i in range(24)]
    for name, lines in (("train", rows), ("eval", rows[::-1])):
        (place / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    tagged = "the O\ngood B-FILM\nfilms I-FILM\nis O\nbad O\n\na O\nplot B-FILM\n. O\n\n"
    for name in ("train", "eval"):
        (place / f"{name}.conll").write_text(tagged * (8 if name == "train" else 7))
        rows = [{"text": texts[i % 4], "labels": [["joy"], ["anger", "fear"], []][i % 3]} for i in range(24)]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("train", "a good film is not a bad plot . "), ("eval", "the plot is very dull . ")):
        (place / f"{name}.txt").write_text(text * 12)
    return place


@pytest.fixture
def command(place, typed):
    """Run a command: exit status, standard output, error lines."""

    def run(*words, model, data="tsv", **flags):
        sources = ["--eval-data", f"eval.{data}"]
        sources += [] if words[0] == "eval" else ["--train-data", f"train.{data}"]
        return typed(place, *words, "--model", model, *sources, "--max-length", "16", **flags)

    return run


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["prune", "structured"], {"model": "BertForTokenClassification", "flops": "0.5"}, "must be words with tags"),
        (["prune", "structured"], {"model": "BertForMultipleChoice", "flops": "0.5"}, "chooses among several texts"),
        (["prune", "layer-adaptive"], {"model": "BertForMaskedLM", "sparsity": "0.5"}, "model of masked words must be"),
        (["finetune"], {"model": "BertForTokenClassification"}, "train_data must be words with tags"),
        (["finetune"], {"model": "BertModel", "data": "conll", "task": "text-classification"}, "got words with tags"),
        (["prune", "structured"], {"model": "llama", "data": "conll", "flops": "0.5"}, "must be texts for a language"),
        (["eval"], {"model": "BertForMultipleChoice"}, "chooses among several texts"),
        (["finetune"], {"model": "llama"}, "train_data of a language model must be running text (--task causal"),
        (["eval"], {"model": "llama"}, "eval_data of a language model must be running text"),
        (["prune", "structured"], {"model": "llama", "flops": "0.5"}, "got labels in 'label' of 'train.tsv'"),
        (["eval"], {"model": "llama", "task": "text-classification"}, "task must be causal for a language model"),
        (["eval"], {"model": "LlamaForSequenceClassification", "task": "causal"}, "task must be text-classification"),
        (["finetune"], {"model": "BertModel", "task": "causal"}, "task must be embedding for a model without a task"),
        (["finetune"], {"model": "llama", "task": "masked"}, "or one that a new head is made for (text-classification"),
        (["finetune"], {"model": "llama", "task": "text-classification", "data": "txt"}, "train_data must have labels"),
        (["finetune"], {"model": "BertModel", "data": "txt"}, "train_data must have labels"),
    ],
)
def test_what_contradicts_is_one_line(place, command, words, options, said):
    status, _, err = command(*words, out="refused", **options)
    (line,) = [line for line in err.splitlines() if line.startswith("niwaki:")]
    assert status == 2
    assert said in line
    assert "fine-tune it first" not in line
    assert not (place / "refused").exists()


def test_labels_are_left_out_where_that_is_asked(place, command):
    status, out, err = command("eval", model="llama", task="causal", out="text")
    assert status == 0, err
    assert "perplexity" in out


@pytest.mark.parametrize("model", ["llama", "BertForMaskedLM", "BertModel"])
def test_a_pretrained_model_is_fine_tuned_into_a_classifier(place, command, model):
    status, _, err = command("finetune", model=model, task="text-classification", out=f"tuned-{model}", epochs="1")
    assert status == 0, err
    assert "a new task head, to be trained" in err
    assert "accuracy" in json.loads((place / f"tuned-{model}" / "result.json").read_text())["pruned"]["quality"]
    assert type(niwaki.load(place / f"tuned-{model}")).__name__.endswith("ForSequenceClassification")


@pytest.mark.parametrize("model", ["LlamaForSequenceClassification", "GPT2ForSequenceClassification", "lora"])
def test_answers_do_not_depend_on_the_batch_size(place, command, model):
    found = []
    for size in ("1", "32"):
        status, _, err = command("eval", model=model, out=f"{model}-{size}", batch_size=size)
        assert status == 0, err
        assert "rows are padded with id 3, as its config says" in err or model == "lora"
        found.append(json.loads((place / f"{model}-{size}" / "result.json").read_text())["pruned"]["quality"])
    assert found[0] == found[1]


def test_a_tagger_from_the_data_to_the_export(place, command):
    """Fine-tuned because the data are tagged; pruned, measured, exported; the pipeline of Transformers reads it."""
    status, _, err = command("finetune", model="BertForMaskedLM", data="conll", out="tagger", epochs="2")
    assert status == 0, err
    assert set(result(place, "tagger")["pruned"]["quality"]) == {"f1", "precision", "recall", "token_accuracy"}
    pruned = ["prune", "structured"], ["prune", "layer-adaptive"], ["prune", "dynamic"]
    budgets = {"flops": "0.6"}, {"sparsity": "0.5"}, {"sparsity": "0.5", "epochs": "3", "interval": "1"}
    for words, budget in zip(pruned, budgets, strict=True):
        status, _, err = command(*words, model="tagger", data="conll", out=f"tagger-{words[1]}", **budget)
        assert status == 0, err
        found = result(place, f"tagger-{words[1]}")
        assert set(found["fidelity"]) == {"agreement", "kl"}
        assert 0 <= found["fidelity"]["agreement"] <= 1
    status, _, err = command("eval", model="tagger-structured", data="conll", out="measured", metric="token_accuracy")
    assert status == 0, err
    assert set(result(place, "measured")["pruned"]["quality"]) == {"token_accuracy"}
    status, _, err = command("prune", "vocabulary", model="tagger", data="conll", out="tagger-words")
    assert status == 0, err
    found = result(place, "tagger-words")
    assert found["fidelity"] == {"agreement": 1.0, "kl": pytest.approx(0.0, abs=1e-9)}
    assert found["pruned"]["quality"] == found["dense"]["quality"]
    tagger = transformers.pipeline("ner", model=str(place / "tagger-structured"))
    assert {"entity", "word"} <= set((tagger("the good films") or [{"entity": "", "word": ""}])[0])


def test_answers_from_the_data(place, command):
    context = "the film is good . the plot is very dull ."
    for name in ("train", "eval"):
        asked = [("is the plot good", "very dull"), ("is the film bad", "good")] * (4 if name == "train" else 3)
        made = [
            {"id": str(i), "question": q, "answers": [{"text": a, "answer_start": context.index(a)}]}
            for i, (q, a) in enumerate(asked)
        ]
        content = {"data": [{"paragraphs": [{"context": context, "qas": made}]}]}
        (place / f"{name}.json").write_text(json.dumps(content))
    status, _, err = command("finetune", model="BertForMaskedLM", data="json", out="reader", epochs="1")
    assert status == 0, err
    assert type(niwaki.load(place / "reader")).__name__ == "BertForQuestionAnswering"
    assert set(result(place, "reader")["pruned"]["quality"]) == {"f1", "exact_match"}
    status, _, err = command("prune", "layer-adaptive", model="reader", data="json", out="less", sparsity="0.5")
    assert status == 0, err
    assert set(result(place, "less")["fidelity"]) == {"agreement", "kl"}
    status, _, err = command("prune", "vocabulary", model="less", data="json", out="trimmed")
    assert status == 0, err
    assert result(place, "trimmed")["fidelity"] == pytest.approx({"agreement": 1.0, "kl": 0.0}, abs=1e-6)
    if "question-answering" in transformers.pipelines.SUPPORTED_TASKS:  # Transformers 5.23 has none any more
        reader = transformers.pipeline("question-answering", model=str(place / "less"))
        assert reader(question="is the plot good", context=context)["answer"] in context
    status, _, err = command("prune", "structured", model="reader", out="refused", flops="0.5")
    assert status == 2
    assert "must be questions with contexts and answers" in err


def test_several_labels_from_the_data(place, command):
    status, _, err = command("finetune", model="BertForMaskedLM", data="jsonl", out="router", epochs="1")
    assert status == 0, err
    assert set(result(place, "router")["pruned"]["quality"]) == {"f1_micro", "f1_macro", "subset_accuracy"}
    config = json.loads((place / "router" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == ["anger", "fear", "joy"]
    status, _, err = command("prune", "structured", model="router", data="jsonl", out="cut", flops="0.6")
    assert status == 0, err
    assert set(result(place, "cut")["fidelity"]) == {"agreement", "kl"}
    router = transformers.pipeline("text-classification", model=str(place / "cut"), top_k=None)
    assert {found["label"] for found in router("a good film")[0]} == {"anger", "fear", "joy"}


def test_masked_words_on_running_text(place, command):
    status, _, err = command("prune", "structured", model="BertForMaskedLM", data="txt", out="words", flops="0.6")
    assert status == 0, err
    assert set(result(place, "words")["pruned"]["quality"]) == {"pseudo_perplexity", "masked_accuracy"}
    filler = transformers.pipeline("fill-mask", model=str(place / "words"))
    assert len(filler("the [MASK] is good")) == 5
    status, _, err = command("finetune", model="BertForMaskedLM", data="txt", task="masked", out="more", epochs="1")
    assert status == 0, err
    assert type(niwaki.load(place / "more")).__name__ == "BertForMaskedLM"


def test_without_labels_fidelity_alone_is_measured(place, command):
    status, _, err = command("finetune", model="BertModel", out="classifier", epochs="1")
    assert status == 0, err
    status, _, err = command("prune", "structured", model="classifier", data="txt", out="bare", flops="0.6")
    assert status == 0, err
    assert "no labels, so fidelity" in err
    found = result(place, "bare")
    assert found["pruned"]["quality"] == {}
    assert found["fidelity"]["kl"] >= 0
    assert "agreement to dense" in (place / "bare" / "README.md").read_text()
    status, _, err = command(
        "prune", "structured", model="classifier", data="txt", out="refused", flops="0.6", head_score="fisher"
    )
    assert status == 2
    assert "must hold labels for scores" in err
    status, _, err = command(
        "prune", "structured", model="classifier", data="txt", out="refused", flops="0.6", metric="f1"
    )
    assert status == 2
    assert "eval_data must have labels" in err


def result(place, name):
    return json.loads((place / name / "result.json").read_text())
