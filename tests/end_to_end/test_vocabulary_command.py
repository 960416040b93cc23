"""`niwaki prune vocabulary` as a user types it, alone and beside other stages."""

from __future__ import annotations

import functools
import json

import pytest
from transformers import AutoTokenizer

import niwaki
from helpers_tasks import model_of
from helpers_tokenizers import sentences, tokenizer_of
from niwaki.anatomy.task import TAGGER
from niwaki.checkpoint import load_tokenizer
from niwaki.run.inputs import name_outputs_
from tiny import tiny, with_lora


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    for family, kind in (("llama", "byte-level"), ("distilbert", "word piece")):
        tokenizer = tokenizer_of(kind)
        model = tiny(family, labels=2)
        model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
        niwaki.save(model, place / family, tokenizer)
        tiny(family).base_model.save_pretrained(place / f"{family}-body")
    body = tiny("distilbert").base_model
    body.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    body.save_pretrained(place / "body")
    tokenizer.save_pretrained(place / "body")
    lora = with_lora(niwaki.load(place / "distilbert"))
    lora.peft_config["default"].base_model_name_or_path = "../distilbert"
    lora.save_pretrained(str(place / "lora"), save_embedding_layers=False)
    (place / "train.txt").write_text("\n".join(sentences(40)))
    (place / "eval.txt").write_text("\n".join([*sentences(12), *sentences(1, seed=9)]))
    (place / "known.txt").write_text("\n".join(sentences(12)))
    for name, seed in (("train", 1), ("eval", 1), ("other", 7)):
        lines = [f"{text}\t{index % 2}" for index, text in enumerate(sentences(24, seed))]
        (place / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
    return place


@pytest.fixture
def command(place, typed):
    """Run a command where these files are: exit status, standard output, error lines."""
    return functools.partial(typed, place)


TEXT = {"model": "llama", "train_data": "train.txt", "eval_data": "known.txt", "max_length": "24"}
ROWS = {"model": "lora", "train_data": "train.tsv", "eval_data": "eval.tsv"}


def result_of(place, out):
    return json.loads((place / out / "result.json").read_text())


def test_a_language_model(place, command):
    status, out, err = command("prune", "vocabulary", out="small", **TEXT)
    assert status == 0, err
    result = result_of(place, "small")
    (stage,) = result["stages"]
    tokenizer = AutoTokenizer.from_pretrained(place / "small")
    assert len(tokenizer) == stage["kept"] < stage["total"]
    assert f"vocabulary: {stage['kept']:,} of {stage['total']:,} tokens kept" in out
    assert "3 of the" in err
    assert stage["budget"]["kind"] == "tokens"
    assert stage["train"]["tokens_gone"] == stage["eval"]["tokens_gone"] == stage["eval"]["texts_changed"] == 0
    before, after = (result[side]["quality"]["perplexity"] for side in ("dense", "pruned"))
    assert after < before
    assert result["pruned"]["embedding_params"] < result["dense"]["embedding_params"]
    assert result["pruned"]["params"] == result["dense"]["params"]
    assert "| embedding_params |" in (place / "small" / "README.md").read_text()
    assert "embedding_params" in (place / "small" / "report.html").read_text()
    status, out, err = command(
        "eval", model="small", against="llama", eval_data="known.txt", max_length="24", out="compared"
    )
    assert status == 0, err
    assert result_of(place, "compared")["pruned"]["quality"]["perplexity"] == pytest.approx(after)
    status, _, err = command("run", "small/recipe.yaml", overwrite=True)
    assert status == 0, err
    assert result_of(place, "small")["pruned"]["quality"] == result["pruned"]["quality"]


def test_text_that_is_cut_otherwise_is_told_of(place, command):
    status, _, err = command("prune", "vocabulary", out="told", **{**TEXT, "eval_data": "eval.txt"}, min_count="4")
    assert status == 0, err
    found = result_of(place, "told")
    eval_ = found["stages"][0]["eval"]
    assert eval_["tokens_gone"] > 0
    assert eval_["tokens_after"] > eval_["tokens_before"] == found["data"]["eval"]["tokens"]
    words = f"{eval_['tokens_gone']} of the {eval_['tokens_before']} tokens of eval_data are gone"
    assert words in err
    assert "perplexities per token are not comparable" in err
    assert any(words in warning for warning in found["warnings"])


@pytest.mark.parametrize("keep_adapter", [False, True])
def test_a_classifier_with_an_adapter(place, command, keep_adapter):
    more = {"keep_adapter": True} if keep_adapter else {}
    status, _, err = command("prune", "vocabulary", out="rows", overwrite=True, **ROWS, **more)
    assert status == 0, err
    result = result_of(place, "rows")
    assert result["dense"]["quality"] == result["pruned"]["quality"]
    assert result["pruned"]["size_bytes"] < result["dense"]["size_bytes"]
    model, tokenizer = niwaki.load(place / "rows"), load_tokenizer(place / "rows")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == result["stages"][0]["kept"]
    if keep_adapter:
        assert len(load_tokenizer(place / "rows" / "adapter")) == len(tokenizer)
    status, _, err = command("prune", "vocabulary", out="other", **{**ROWS, "eval_data": "other.tsv"}, overwrite=True)
    assert status == 0, err
    assert "of the" in err
    assert "of 24 texts" in err


def test_a_tagger_keeps_the_pieces_of_its_words(place, command):
    tokenizer = tokenizer_of("byte-level")
    model = model_of(TAGGER, "distilbert")
    name_outputs_(model, ("O", "B-X", *(f"I-{number}" for number in range(model.config.num_labels - 2))))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    niwaki.save(model, place / "tagger", tokenizer)
    rows = [text.split() for text in sentences(40, 3)]
    said = [{"tokens": row, "tags": ["B-X" if len(word) > 4 else "O" for word in row]} for row in rows]
    (place / "words.jsonl").write_text("\n".join(map(json.dumps, said)))
    data = {"model": "tagger", "train_data": "words.jsonl", "eval_data": "words.jsonl"}
    status, _, err = command("prune", "vocabulary", out="of-words", **data)
    assert status == 0, err
    before, after = (load_tokenizer(place / name, of_words=True) for name in ("tagger", "of-words"))
    assert len(after) < len(before)
    for row in rows:
        cut = [t.convert_ids_to_tokens(t(row, is_split_into_words=True)["input_ids"]) for t in (before, after)]
        assert cut[0] == cut[1]
    result = result_of(place, "of-words")
    assert result["pruned"]["quality"] == result["dense"]["quality"]
    assert result["stages"][0]["eval"]["texts_changed"] == 0


def test_stages_after_it_see_the_new_tokens(place, command):
    recipe = {
        "model": "body",
        "train_data": "train.tsv",
        "eval_data": "other.tsv",
        "out": "stages",
        "batch_size": 4,
        "stages": [
            {"kind": "vocabulary", "min_count": 2},
            {"kind": "finetune", "lora_rank": 2},
            {"kind": "structured", "flops": 0.6},
            {"kind": "vocabulary", "characters": "used"},
            {"kind": "dynamic", "sparsity": 0.3, "epochs": 1, "interval": 1, "lora_rank": 2},
        ],
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    status, out, err = command("run", "recipe.yaml")
    assert status == 0, err
    first, second = (stage for stage in result_of(place, "stages")["stages"] if stage["name"] == "vocabulary")
    assert first["total"] > first["kept"] == second["total"] >= second["kept"]
    assert f"1. vocabulary: {first['kept']} of {first['total']} tokens that came into this stage kept" in out
    assert len(load_tokenizer(place / "stages")) == second["kept"]
    assert niwaki.load(place / "stages").config.vocab_size == second["kept"]


def test_a_size(place, command):
    status, _, err = command("prune", "vocabulary", out="sized", **TEXT, size="300")
    assert status == 0, err
    budget = result_of(place, "sized")["stages"][0]["budget"]
    assert budget["achieved"] <= budget["requested"]
    assert len(load_tokenizer(place / "sized")) in (299, 300)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_count": "0"}, "min_count must be at least 1, got 0"),
        ({"size": "9"}, "size must be at least"),
        ({"characters": "none"}, "characters must be one of all, used, got 'none'"),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(place, command, options, words):
    status, _, err = command("prune", "vocabulary", out="refused", **TEXT, **options)
    assert status == 2
    assert words in err.splitlines()[-1]
    assert not (place / "refused").exists()


def test_what_cannot_be_trimmed_is_refused_before_training(place, command):
    lora = with_lora(niwaki.load(place / "distilbert"), modules_to_save=["word_embeddings"])
    lora.peft_config["default"].base_model_name_or_path = "../distilbert"
    lora.save_pretrained(str(place / "wide"), save_embedding_layers=False)
    stages = [{"kind": "finetune"}, {"kind": "vocabulary"}]
    recipe = {"model": "wide", "train_data": "train.tsv", "eval_data": "eval.tsv", "out": "refused", "stages": stages}
    (place / "wide.yaml").write_text(json.dumps(recipe))
    status, _, err = command("run", "wide.yaml")
    assert status == 2
    assert "adapter must not be on the embeddings" in err.splitlines()[-1]
    assert "train:" in err
    assert "loss=" not in err
    assert not (place / "refused").exists()
