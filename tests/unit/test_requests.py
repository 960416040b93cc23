"""Requests that are wrong are refused before any work, in one line that says what would be right."""

from __future__ import annotations

import pytest
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

import niwaki
from niwaki.config import Recipe, read_recipe, recipe_from_dict, recipe_to_dict, write_recipe
from tiny import batches, tiny, with_lora


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["exactly one", "none"]),
        ({"flops": 0.5, "params": 0.5}, ["exactly one", "flops and params"]),
        ({"flops": 0.0}, ["flops", "(0, 1]", "0"]),
        ({"params": 1.5}, ["params", "(0, 1]", "1.5"]),
        ({"flops": float("nan")}, ["flops", "nan"]),
        ({"flops": 0.5, "head_score": "fischer"}, ["head_score", "fischer", "did you mean 'fisher'"]),
        ({"flops": 0.5, "steps": 0}, ["steps", "at least 1"]),
    ],
)
def test_config_names_parameter_rule_and_value(options, words):
    with pytest.raises(niwaki.RequestError) as error:
        niwaki.Structured(**options)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_budget_below_the_minimum_says_the_least():
    model = tiny()
    with pytest.raises(niwaki.RequestError, match=r"at least 0\.\d+.*got 0.01"):
        niwaki.prune_(model, niwaki.Structured(flops=0.01), batches())


def test_architectures_that_cannot_be_pruned():
    albert = AlbertForSequenceClassification(
        AlbertConfig(vocab_size=60, hidden_size=32, num_attention_heads=4, intermediate_size=48)
    )
    with pytest.raises(niwaki.RequestError, match=r"albert.*share"):
        niwaki.prune_(albert, niwaki.Structured(flops=0.5), batches())
    gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(niwaki.RequestError, match=r"distilbert.*got 'gpt2'"):
        niwaki.prune_(gpt2, niwaki.Structured(flops=0.5), batches())


def test_dora_is_refused():
    with pytest.raises(niwaki.RequestError, match="DoRA"):
        niwaki.prune_(with_lora(tiny(), use_dora=True), niwaki.Structured(flops=0.5), batches())


def test_no_batches():
    with pytest.raises(niwaki.RequestError, match="at least one batch"):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.5), [])


def test_recipe_round_trip(tmp_path):
    recipe = Recipe(
        model="m",
        train_data="t.tsv",
        eval_data="e.tsv",
        out="o",
        stages=(niwaki.Finetune(epochs=2), niwaki.Structured(flops=0.5)),
        text_columns=("a", "b"),
    )
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    plain = recipe_to_dict(recipe)
    plain["modle"] = plain.pop("model")
    with pytest.raises(niwaki.RequestError, match=r"modle.*did you mean 'model'"):
        recipe_from_dict(plain)
    plain["model"] = plain.pop("modle")
    plain["stages"][1]["flops"] = "half"
    with pytest.raises(niwaki.RequestError, match=r"structured\.flops must be float or .*got 'half'"):
        recipe_from_dict(plain)
