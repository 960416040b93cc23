"""Memory that is said before any work: sizes read, estimates that grow with what they are of, refusals."""

from __future__ import annotations

import dataclasses
import os

import psutil
import pytest
import torch

import niwaki
from niwaki.adapters import attach_lora
from niwaki.anatomy import layers_of, left_by_layers
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Structured
from niwaki.config.fields import bytes_of
from niwaki.data import Batches
from niwaki.numerics import allocator
from niwaki.run.memory import (
    LIBRARIES,
    check_memory,
    check_processes,
    needed,
    shown,
    stage_bytes,
    weight_bytes,
)
from niwaki.run.pass_memory import beside_bytes, largest, observing_bytes, training_bytes
from tiny import batches, tiny, with_lora

STAGES = [
    Structured(flops=0.5),
    Structured(flops=0.5, recover_epochs=1),
    LayerAdaptive(sparsity=0.5, recover_epochs=1, recover_full=True),
    LayerAdaptive(sparsity=0.5),
    LayerAdaptive(sparsity=0.5, reconstruct="kept"),
    LayerAdaptive(sparsity=0.5, allocation="lamp", weight_score="wanda"),
    DynamicSparsityTraining(sparsity=0.5),
    Finetune(),
]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8GiB", 8 * 2**30),
        ("500 MB", 5 * 10**8),
        ("1.5gb", 15 * 10**8),
        ("123456", 123456),
        ("64 KiB", 65536),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text, amount):
    assert bytes_of("max_memory", text) == amount


@pytest.mark.parametrize("text", ["", "8 elephants", "GiB", "-1GB", "0", "8GiBs"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(niwaki.RequestError, match="max_memory must be a size such as 8GiB or 500MB, got"):
        bytes_of("max_memory", text)


@pytest.mark.parametrize("family", ["distilbert", "llama", "gpt2"])
def test_what_a_batch_leaves_grows_with_its_rows(family):
    model = tiny(family)
    one, two = (observing_bytes(model, batches(count=1, rows=rows, family=family)) for rows in (2, 4))
    assert one > 0
    assert two == pytest.approx(2 * one, abs=2)  # each part is rounded
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize("lora", [False, True])
def test_a_stage_needs_what_is_there_before_it_starts(stage, lora):
    model = with_lora(tiny()) if lora else tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, large = (needed(model, stage, batches(count=2, rows=rows)) for rows in (2, 20))
    assert 0 < small < large
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_too_little_is_refused_with_what_is_needed():
    model, data = tiny(), batches(count=2, rows=6)
    assert weight_bytes(model) > 4 * sum(p.numel() for p in model.parameters()) - 1
    check_memory(2**40, model, STAGES, data, copies=1)
    words = r"max_memory must be at least \d+\.\d\dGiB for structured .*6 rows"
    with pytest.raises(niwaki.RequestError, match=words) as e:
        check_memory(2**20, model, STAGES, data, copies=1)
    enough = float(str(e.value).split("at least ")[1].split("GiB")[0]) + 0.1
    check_memory(int(enough * 2**30), model, STAGES[:1], data, copies=1)


def test_what_is_said_to_be_enough_is():
    """Rounded to the next, it was refused again half of the time, by itself."""
    for amount in (10**9, 10**9 + 1, 2**30, 2**30 + 1, 123456789):
        assert bytes_of("max_memory", shown(amount, enough=True)) >= amount >= bytes_of("max_memory", shown(amount))
    assert (shown(2**30 + 1), shown(2**30 + 1, enough=True), shown(2**30, enough=True)) == (
        "1.00GiB",
        "1.01GiB",
        "1.00GiB",
    )


@pytest.mark.parametrize("stage", [Structured(flops=0.5), LayerAdaptive(sparsity=0.5)], ids=type)
def test_recovery_of_all_weights_needs_more(stage):
    model, data = tiny(), batches(count=2, rows=6)
    lora, full = (
        needed(model, dataclasses.replace(stage, recover_epochs=1, recover_full=full), data) for full in (False, True)
    )
    assert full - lora > weight_bytes(model.distilbert.transformer)


@pytest.mark.parametrize("stage", [DynamicSparsityTraining(sparsity=0.5), Finetune(full=True)], ids=type)
def test_layers_that_run_again_need_less_and_the_best_needs_more(stage):
    model, data = tiny("llama"), batches(count=2, rows=60, family="llama")
    plain, again, best = (
        needed(model, dataclasses.replace(stage, **options), data)
        for options in ({}, {"gradient_checkpointing": True}, {"early_stopping": 1})
    )
    assert again < plain <= best
    assert (best == plain) == isinstance(stage, DynamicSparsityTraining)


def test_a_dense_teacher_runs_beside_the_model_that_learns():
    """Whatever learns from it: its pass, and the states of both, which are compared."""
    model, data = tiny(), batches(count=2, rows=60)
    states = 2 * 4 * 60 * 12 * 32 * 4  # of both, in float32: rows, tokens, width, layers and the embeddings
    for stage in (DynamicSparsityTraining(sparsity=0.5), Structured(flops=0.5, recover_epochs=1)):
        without = training_bytes(model, data, stage, dropout=False)
        assert needed(model, stage, data) >= without + beside_bytes(model, data)
    assert beside_bytes(model, data) >= states
    learns = (DynamicSparsityTraining(sparsity=0.5, teacher=teacher) for teacher in ("none", "dense"))
    from_labels, from_dense = (needed(model, stage, data) for stage in learns)
    passes = [training_bytes(model, data, stage, dropout=dropout) for dropout in (True, False)]
    assert from_dense - from_labels == passes[1] - passes[0] + beside_bytes(model, data)


def test_layers_that_learn_need_more():
    for stage in (Structured(flops=0.5), LayerAdaptive(sparsity=0.5)):
        learns = dataclasses.replace(stage, reconstruct="norms")
        assert needed(tiny(), learns, batches(count=2, rows=6)) > needed(tiny(), stage, batches(count=2, rows=6))


def left_for_backward(model, batch):
    """Bytes of all that a forward pass keeps, as PyTorch says, but for parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss  # held, so that no storage is used twice
    return sum(kept.values()) if loss.requires_grad else 0


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("full", [False, True])
def test_what_trains_is_counted_as_it_trains(family, full):
    model, data = tiny(family), batches(rows=16, length=32, family=family)
    was = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    state = torch.get_rng_state()
    estimate = training_bytes(model, data, Finetune(full=full), dropout=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert was == [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    assert not any(module.training for module in model.modules())
    tuned = model.requires_grad_(True) if full else attach_lora(model, 16)
    kept = left_for_backward(tuned.train(), data[0])
    assert kept <= estimate <= 1.8 * kept  # beside it the gradients of one of three layers, and logits
    assert needed(tiny(family), Finetune(full=full), data) > kept


def test_the_largest_batches_count_whatever_they_are_for():
    few, many = batches(rows=2), batches(rows=40, length=30)
    trains = Finetune(), DynamicSparsityTraining(sparsity=0.5), Structured(flops=0.5, recover_epochs=1)
    for stage in trains:
        assert needed(tiny(), stage, few, many) >= needed(tiny(), stage, few) + 30 * 40 * 1000
    stage = Structured(flops=0.5)
    assert needed(tiny(), stage, few, many) == needed(tiny(), stage, few)
    assert stage_bytes(tiny(), stage, few, few, batches(rows=4000)) > stage_bytes(tiny(), stage, few, few, few)
    with pytest.raises(niwaki.RequestError, match="for finetune with batches of 40 rows"):
        check_memory(2**20, tiny(), [Finetune()], few, 1, many, few)


def test_the_largest_batch_is_full_and_of_the_longest_rows():
    class Padding:
        def pad(self, rows, **_):
            ids = [row["input_ids"] for row in rows]
            return {"input_ids": torch.tensor([[*each, *[0] * (max(map(len, ids)) - len(each))] for each in ids])}

    rows = [{"input_ids": [1] * length} for length in (3, 9, 4, 8, 2)]
    (batch,) = largest(Batches(rows, Padding(), 2, sort_by_length=False))
    assert batch["input_ids"].shape == (2, 9)
    assert max(map(len, (batch["input_ids"] for batch in Batches(rows, Padding(), 2)))) == 2


def test_the_passes_that_are_timed_are_counted():
    model, data = tiny(), batches(rows=1, length=30)
    data[0]["attention_mask"].fill_(1)
    stage = LayerAdaptive(sparsity=0.5, allocation="uniform", weight_score="magnitude", repair="none")
    timed = left_by_layers(model, 32 * 30) // len(layers_of(model))
    assert stage_bytes(model, stage, data) > timed > needed(model, stage, data)


def test_processes_side_by_side_are_held_against_the_limit_together():
    model, resident = tiny(), psutil.Process().memory_info().rss
    check_processes(resident + 2**28, model, 1, 2**20)
    with pytest.raises(niwaki.RequestError, match=r"max_memory must be at least .*GiB for 3 jobs \(fewer need less\)"):
        check_processes(resident + 2**28, model, 3, 2**28)
    with pytest.raises(niwaki.RequestError, match="for a sweep"):
        check_processes(resident + LIBRARIES, model, 1, 2**28)


def test_freed_memory_goes_back_where_that_is_asked(monkeypatch):
    """Pieces between others that stay: what the C library would keep in its heap."""
    if not os.confstr_names.get("CS_GNU_LIBC_VERSION"):
        pytest.skip("another C library")
    for name in [name for name in os.environ if name.startswith(allocator._CHOICES)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocator, "_asked", False)
    allocator.give_back()
    try:
        resident, stays = psutil.Process().memory_info, []
        pieces = []
        for _ in range(12):
            pieces.append(torch.ones(2 * 2**20))
            stays.append(torch.ones(100))
        before = resident().rss
        del pieces[::2]
        assert before - resident().rss > 40 * 2**20
        with allocator.as_elsewhere():
            pass
    finally:
        allocator._set(allocator._KEPT)
    monkeypatch.setattr(allocator, "_asked", False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setattr(allocator, "_set", lambda size: pytest.fail("the user's choice was overruled"))
    allocator.give_back()
