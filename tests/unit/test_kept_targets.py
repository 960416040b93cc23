"""What the dense model gives is kept from one cut to the next, which is the same to the last bit without running it."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from niwaki.repair import kept_targets, sequential_least_squares
from niwaki.repair.kept_targets import KeptTargets
from tiny import batches, logits, tiny, with_lora

CONFIGS = {
    "structured": (niwaki.Structured(flops=0.7), {"flops": 0.5}),
    "bias": (niwaki.Structured(flops=0.7, repair="bias"), {"flops": 0.5}),
    "layer-adaptive": (niwaki.LayerAdaptive(sparsity=0.4, allocation="uniform"), {"sparsity": 0.6}),
    "fast": (niwaki.LayerAdaptive(sparsity=0.4, allocation="uniform", fast=True), {"sparsity": 0.6}),
    "learned": (niwaki.Structured(flops=0.7, reconstruct="kept"), {"flops": 0.5}),
    "learned under masks": (
        niwaki.LayerAdaptive(sparsity=0.4, allocation="uniform", reconstruct="norms"),
        {"sparsity": 0.6},
    ),
}


@pytest.fixture
def streams(monkeypatch):
    """Every stream that is made from here on."""
    made = []

    def stream(*args):
        made.append(Stream(*args))
        return made[-1]

    Stream = sequential_least_squares.Stream
    monkeypatch.setattr(sequential_least_squares, "Stream", stream)
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_the_next_cut_is_the_same_without_the_dense_model(tmp_path, streams, name):
    config, other = CONFIGS[name]
    dense, data = with_lora(tiny()), batches(count=3, rows=8)
    plan = niwaki.plan(dense, config, data)
    found = {}
    for folder, count in ((None, 2), ("targets", 2), ("targets", 1)):
        model = copy.deepcopy(dense)
        streams.clear()
        cut = plan.at(**other) if folder is None else plan.keeping_targets(tmp_path / folder).at(**other)
        niwaki.apply_(model, cut, data)
        assert len(streams) == count
        found[folder, count] = model.state_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["targets"]
    first, *others = found.values()
    for weights in others:
        assert all(torch.equal(value, weights[key]) for key, value in first.items())


def test_layers_that_learn_do_without_targets_that_lack_what_they_look_at(tmp_path, streams):
    model, data = tiny(), batches(count=3, rows=8)
    found = {}
    for which in ("none", "kept"):
        plan = niwaki.plan(model, niwaki.Structured(flops=0.7, reconstruct=which), data)
        for cut in (plan.keeping_targets(tmp_path / "targets"), plan):
            pruned = copy.deepcopy(model)
            niwaki.apply_(pruned, cut, data)
            found.setdefault(which, []).append(pruned.state_dict())
    for first, second in found.values():
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_a_cut_that_empties_sites_keeps_nothing_that_others_would_lack(tmp_path, family):
    model, data = tiny(family), batches(count=2, family=family)
    plan = niwaki.plan(model, niwaki.Structured(flops=0.9, min_heads=0, min_neurons=0, round_to=16), data)
    kept = plan.keeping_targets(tmp_path / "targets")
    low = niwaki.apply_(copy.deepcopy(model), kept.at(flops=0.15), data)
    assert not all(site.kept for site in low.layers)
    assert not (tmp_path / "targets").exists()
    found = []
    for cut in (kept.at(flops=0.9), kept.at(flops=0.9), plan.at(flops=0.9)):
        pruned = copy.deepcopy(model)
        niwaki.apply_(pruned, cut, data)
        found.append(logits(pruned, data[0]))
    assert (tmp_path / "targets").is_dir()
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


def test_what_is_too_large_for_the_disk_or_unfinished_is_not_kept(tmp_path, monkeypatch):
    kept = KeptTargets(tmp_path / "targets")
    targets = [{"query": torch.ones(2, 3)}]

    def unfinished():
        with kept.growing() as made:
            list(made.noted("0-query", iter(targets)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unfinished()
    monkeypatch.setattr(kept_targets, "MOST_OF_DISK", 0.0)
    with kept.growing() as made:
        assert list(made.noted("0-query", iter(targets))) == targets
    assert not kept.there
    assert not list(tmp_path.iterdir())
