"""Memory that is said before any work: sizes read, estimates that grow with what they are of, refusals."""

from __future__ import annotations

import dataclasses
import os

import psutil
import pytest
import torch

import niwaki
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Structured
from niwaki.config.fields import bytes_of
from niwaki.numerics import allocator
from niwaki.run.memory import backward_bytes, check_memory, needed, weight_bytes
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
    one, two = (backward_bytes(model, batches(count=1, rows=rows, family=family)) for rows in (2, 4))
    assert one > 0
    assert two == 2 * one
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


def test_layers_that_learn_need_more():
    for stage in (Structured(flops=0.5), LayerAdaptive(sparsity=0.5)):
        learns = dataclasses.replace(stage, reconstruct="norms")
        assert needed(tiny(), learns, batches(count=2, rows=6)) > needed(tiny(), stage, batches(count=2, rows=6))


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
