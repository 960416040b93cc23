"""Layers that learn after their refit: masks and adapters are held, and what is no better is not kept."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import niwaki
from helpers_tasks import batches_of, model_of
from niwaki.adapters import masks_of
from niwaki.anatomy import TASKS, layers_of, linears_of
from niwaki.evaluate.fidelity import fidelity
from niwaki.repair import block_reconstruction
from niwaki.repair.sequential_least_squares import sequential_least_squares_
from tiny import batches, logits, tiny, with_lora

LEARNED = ("norms", "kept")


def learn_(model, dense, data, which):
    """Every layer learns; none is refitted first."""
    then = block_reconstruction.reconstruction(which, data, niwaki.observe.Statistics(), None, 0)
    sequential_least_squares_(
        model, dense, data, lambda sums: [{} for _ in sums], lambda linear, found: None, then=then
    )


def distance(model, dense, data):
    return sum(float((logits(model, batch) - logits(dense, batch)).square().mean()) for batch in data)


@pytest.mark.parametrize(
    ("family", "which"),
    # Layers that are called in different ways; Gemma's norms hold what is added to 1.
    [(name, "kept") for name in ("modernbert", "mobilellm", "gpt_neox", "gpt2", "opt")]
    + [(name, which) for name in ("distilbert", "llama") for which in LEARNED],
)
def test_norms_and_biases_that_were_moved_are_learned_back(family, which):
    dense, data = tiny(family), batches(count=8, rows=12, family=family)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in (parameter for layer in layers_of(model) for parameter in layer.parameters()):
            if parameter.dim() == 1:
                parameter.mul_(1.03)
    before = distance(model, dense, data)
    learn_(model, dense, data, which)
    assert distance(model, dense, data) < 0.9 * before
    moved = {id(a) for a, b in zip(model.parameters(), dense.parameters(), strict=True) if not torch.equal(a, b)}
    weights = [linear.module.weight for linear in linears_of(model)]
    assert any(id(weight) in moved for weight in weights) == (which == "kept")


@pytest.mark.parametrize("task", [task for task in TASKS if task.supported], ids=lambda task: task.name)
def test_models_of_every_task_learn(task):
    """A model that chooses among texts takes the rows of a step, half of those of a batch, for one block of memory."""
    if task.name in ("text-classification", "causal"):
        family = "bert" if task.name != "causal" else "llama"
        dense, data = tiny(family), batches(count=8, family=family)
    else:
        dense, data = model_of(task, "bert"), batches_of(task, count=8)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in layers_of(model).parameters():
            if parameter.dim() == 1:
                parameter.mul_(1.03)
    moved = copy.deepcopy(model)
    learn_(model, dense, data, "norms")
    far, near = (fidelity(dense, each, data) for each in (moved, model))
    assert near.get("kl", 1 - near.get("cosine", 0.0)) < 0.9 * far.get("kl", 1 - far.get("cosine", 0.0))


@pytest.mark.parametrize("which", LEARNED)
def test_masks_hold_and_adapters_stay(which):
    torch.manual_seed(0)
    model, data = with_lora(tiny()), batches(count=8)
    factors = {name: value.clone() for name, value in model.named_parameters() if "lora_" in name}
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.7, weight_score="magnitude", reconstruct=which), data)
    zeros = sum(int((~mask).sum()) for mask in masks_of(model).values())
    assert zeros == round(0.7 * sum(linear.size for linear in linears_of(model)))
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in factors.items())
    assert {p.requires_grad for n, p in model.named_parameters() if "lora_" in n} == {True}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "count", "which"),
    [
        (niwaki.Structured(flops=0.5), 8, "kept"),
        (niwaki.Structured(flops=0.5), 7, "none"),
        (niwaki.Structured(flops=0.5, repair="bias"), 8, "none"),
        (niwaki.LayerAdaptive(sparsity=0.5), 8, "kept"),
        (niwaki.LayerAdaptive(sparsity=0.5, fast=True), 8, "none"),
        (niwaki.LayerAdaptive(sparsity=0.5, repair="none"), 8, "none"),
        (niwaki.LayerAdaptive(sparsity=0.5, reconstruct="norms"), 1, "norms"),
    ],
)
def test_by_default_layers_learn_where_they_are_refitted_on_enough(config, count, which):
    assert block_reconstruction.learns(config, batches(count=count, rows=4)) == which
    made = []
    for asked in (config, dataclasses.replace(config, reconstruct=which)):
        model = tiny()
        niwaki.prune_(model, asked, batches(count=count, rows=4))
        made.append(model.state_dict())
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_a_layer_with_nothing_to_learn_stays_as_it_was():
    """Norms without weights and linears without biases, as OPT can be configured (Galactica is)."""
    config = {**tiny("opt").config.to_dict(), "enable_bias": False, "layer_norm_elementwise_affine": False}
    model, data = OPTForCausalLM(OPTConfig(**config)).eval(), batches(family="opt")
    found = niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, reconstruct="norms"), data)
    assert found.achieved == 0.5


def test_a_layer_that_is_no_better_after_training_stays_as_it_was(monkeypatch):
    monkeypatch.setattr(block_reconstruction, "STEP", 100.0)
    monkeypatch.setattr(block_reconstruction, "LARGEST", 10.0)
    dense, data = tiny(), batches(count=8)
    model = copy.deepcopy(dense)
    niwaki.prune_(model, niwaki.Structured(flops=0.7), data)
    before = copy.deepcopy(model.state_dict())
    learn_(model, dense, data, "kept")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["sparsity", "flops"])
def test_a_pruned_model_comes_nearer_and_costs_what_is_told(method):
    data, family = batches(count=8, rows=24, family="llama"), "llama"
    dense, errors, results = tiny(family), {}, {}
    for which in ("none", "kept"):
        model = copy.deepcopy(dense)
        if method == "sparsity":
            config = niwaki.LayerAdaptive(sparsity=0.8, weight_score="magnitude", reconstruct=which)
        else:
            config = niwaki.Structured(flops=0.5, reconstruct=which)
        results[which] = niwaki.prune_(model, config, data)
        errors[which] = distance(model, dense, data)
    assert errors["kept"] < errors["none"]
    trained, looked_at = block_reconstruction.MOST, 1 / 8
    assert results["kept"].forward_passes - results["none"].forward_passes == pytest.approx(trained + 2 * looked_at)
    assert results["kept"].backward_passes - results["none"].backward_passes == pytest.approx(trained)


@pytest.mark.parametrize(("rows", "epochs"), [(8, 6), (80, 4), (300, 1)])
def test_few_data_are_learned_from_more_often(rows, epochs):
    pieces = [{"input_ids": torch.zeros(rows, 512, dtype=torch.long)}]
    assert block_reconstruction.reconstruction_passes("kept", pieces).backward == epochs


@pytest.mark.parametrize(("batches", "lengths"), [(1, [3, 2]), (2, [5, 5]), (3, [10, 5])])
def test_a_step_has_rows_of_two_parts_however_long_they_are(batches, lengths):
    """So two processes share what layers learn of windows that are all of a step."""
    rows = {"input_ids": torch.zeros(5, 600, dtype=torch.long), "attention_mask": torch.ones(5, 600)}
    queues = block_reconstruction._queues([rows] * batches)
    assert sorted(map(len, queues), reverse=True) == lengths
    assert len({(n, piece.start) for queue in queues for n, piece in queue}) == 5 * batches


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_positions_that_all_rows_share_stay_whole(family):
    """A step learns from some rows of a batch."""
    data = batches(count=2, rows=60, family=family)
    assert {piece.start for queue in block_reconstruction._queues(data) for _, piece in queue} == {0, 20, 40}
    states = []
    for more in ({}, {"position_ids": torch.arange(12)[None]}):
        model = tiny(family)
        asked = niwaki.Structured(flops=0.6, reconstruct="kept")
        niwaki.prune_(model, asked, [batch | more for batch in data])
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_same_seed_same_bytes_and_half_precision_stays():
    data, states = batches(count=8, family="llama"), []
    for _ in range(2):
        model = tiny("llama").to(torch.bfloat16)
        niwaki.prune_(model, niwaki.Structured(flops=0.7, reconstruct="kept", seed=3), data)
        states.append(model.state_dict())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        torch.rand(5)  # what others draw meanwhile
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_an_error_that_is_not_finite_names_the_layer(monkeypatch):
    monkeypatch.setattr(block_reconstruction, "STEP", float("inf"))
    monkeypatch.setattr(block_reconstruction, "LARGEST", float("inf"))
    dense, data = tiny(), batches(count=8)
    with pytest.raises(niwaki.WorkError, match=r"layer\.0: the error of what it gives is not finite"):
        learn_(copy.deepcopy(dense), dense, data, "kept")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reconstruct": "all"}, "reconstruct must be one of auto, kept, none, norms, got 'all'"),
        ({"reconstruct": "kept", "repair": "none"}, "reconstruct must be none where repair is none, got 'kept'"),
    ],
)
def test_what_cannot_learn_is_refused(options, said):
    for method in (niwaki.Structured, niwaki.LayerAdaptive):
        budget = {"flops": 0.5} if method is niwaki.Structured else {"sparsity": 0.5}
        with pytest.raises(niwaki.RequestError, match=said):
            method(**budget, **options)
