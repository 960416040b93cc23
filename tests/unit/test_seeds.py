"""The same seed gives the same bytes, whatever was drawn before; and nobody's random state is changed by a call."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import DistilBertForMaskedLM

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.adapters import attach_lora
from niwaki.data import Table
from niwaki.numerics.seeds import seeded
from niwaki.run.rows import Cut, cut_table
from tiny import batches, configs, tiny, with_lora


def state() -> tuple[object, ...]:
    """What the global generators of Python, NumPy and PyTorch would draw next."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def elsewhere(seed: int) -> None:
    """The global generators as some other work left them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def shuffled(data: list[dict]) -> DataLoader:
    """Batches in an order that the loader draws from the global generator."""
    return DataLoader(data, batch_size=None, shuffle=True)


def pruned(model, config):
    niwaki.prune_(model, config, shuffled(batches(count=2, rows=6)))
    return model


UNIFORM = {"allocation": "uniform", "weight_score": "magnitude", "repair": "none"}
WORK = {
    "finetune": lambda model: niwaki.finetune(model, niwaki.Finetune(lora_rank=4), shuffled(batches(count=2, rows=6)))[
        0
    ],
    "structured": lambda model: pruned(model, niwaki.Structured(flops=0.6, repair="none", recover_epochs=1)),
    "layer-adaptive": lambda model: pruned(model, niwaki.LayerAdaptive(sparsity=0.5, recover_epochs=1, **UNIFORM)),
    "dynamic": lambda model: pruned(
        model, niwaki.DynamicSparsityTraining(sparsity=0.5, interval=1, grow="random", epochs=1, lora_rank=4)
    ),
}


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_new_factors_are_drawn_from_the_seed(family):
    drawn = []
    for other, seed in ((1, 5), (2, 5), (1, 6)):
        model = tiny(family)
        elsewhere(other)
        found = attach_lora(model, 4, seed=seed).state_dict()
        drawn.append(torch.cat([value.flatten() for name, value in found.items() if "lora_A" in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("work", WORK)
def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_state_alone(work):
    found = []
    for other in (1, 2):
        model = tiny()
        elsewhere(other)
        before = state()
        made = WORK[work](model)
        assert state() == before
        found.append(made.state_dict())
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_no_other_verb_changes_the_global_state(tmp_path):
    model, config = with_lora(tiny()), niwaki.LayerAdaptive(sparsity=0.5, **UNIFORM)
    elsewhere(3)
    before = state()
    niwaki.score(model, shuffled(batches(count=1, rows=6)))
    niwaki.score(model, shuffled(batches(count=1, rows=6)), config)
    niwaki.save(model, tmp_path / "out")
    niwaki.merge_(model)
    assert state() == before


@pytest.mark.parametrize("made", ["another head", "an adapter"])
def test_loading_draws_from_its_seed_and_leaves_the_global_state_alone(tmp_path, made):
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    model = with_lora(model) if made == "an adapter" else model
    model.save_pretrained(tmp_path / "model")
    options = {"base_model": str(tmp_path / "base")} if made == "an adapter" else {"labels": ["a", "b", "c", "d"]}
    found = []
    for other, seed in ((1, 5), (2, 5), (1, 6)):
        elsewhere(other)
        before = state()
        loaded = niwaki.load(tmp_path / "model", seed=seed, **options)
        assert state() == before
        found.append(torch.cat([value.flatten() for value in loaded.state_dict().values()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (made == "an adapter")


def test_a_failure_leaves_the_global_state_alone():
    before = state()
    with pytest.raises(ValueError, match="stop"), seeded(0):
        raise ValueError("stop")
    assert state() == before


def test_words_that_are_hidden_to_measure_by_are_the_same_for_every_seed():
    """Models of several seeds are compared; what they are trained on may differ."""
    table = Table("memory", None, 6, ("text",), None, [("a good film is not the dull plot . " * 2,)] * 6, None)
    model, tokenizer = DistilBertForMaskedLM(configs()["distilbert"]), tiny_tokenizer()
    hidden = {
        (split, seed): [row["labels"] for row in cut_table(table, model, tokenizer, Cut(24, seed=seed), split).rows]
        for split in ("train", "validation")
        for seed in (0, 1)
    }
    assert hidden["validation", 0] == hidden["validation", 1]
    assert hidden["train", 0] != hidden["train", 1]
    assert all(any(label != -100 for label in row) for rows in hidden.values() for row in rows)
