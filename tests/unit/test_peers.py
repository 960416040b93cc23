"""The baselines of benchmarks/peers that are written from papers, on a tiny model; packages are not installed here."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch

from niwaki.anatomy import count, sites_of, unit_flops, weight_of
from niwaki.data import mean_length
from tiny import batches, logits, tiny

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)


@pytest.mark.parametrize("name", ["kwon", "kprune", "flap"])
def test_a_baseline_meets_its_budget_and_leaves_a_model_that_keeps_all_as_it_is(name):
    data, dense = batches(4), tiny().eval()
    prune, length = importlib.import_module(name).prune, mean_length(data)
    total = count(dense, length).block_flops
    head = max(unit_flops(site, length) for site in sites_of(dense))
    half = prune(copy.deepcopy(dense), data, {"flops": 0.5}, 0)
    assert 0.5 * total - head <= count(half, length).block_flops <= 0.5 * total
    assert torch.isfinite(logits(half, data[0])).all()
    whole = prune(copy.deepcopy(dense), data, {"flops": 1.0}, 0)
    torch.testing.assert_close(logits(whole, data[0]), logits(dense, data[0]), atol=1e-3, rtol=1e-3)


def test_rearrangement_takes_as_many_units_and_loses_no_more():
    gradients = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    gradients[:, 6:] -= gradients[:, :6]  # pairs that go together cost less than one alone
    mask = torch.ones(12, dtype=torch.bool)
    mask[gradients.square().sum(0).argsort()[:5]] = False

    def lost(kept):
        return float(gradients[:, ~kept].sum(1).square().sum())

    found = importlib.import_module("kwon")._rearranged(mask, gradients)
    assert int(found.sum()) == int(mask.sum())
    assert lost(found) < lost(mask)


def test_flap_removes_what_never_changes_and_keeps_what_it_says_in_the_bias():
    data, dense = batches(2), tiny().eval()
    neurons = [site for site in sites_of(dense) if site.kind == "ffn"]
    for linear in (linear for site in neurons for linear in site.inputs):
        weight_of(linear).data[:4] = 0.0
    length = mean_length(data)
    total, spare = count(dense, length).block_flops, 4 * unit_flops(neurons[0], length)
    pruned = importlib.import_module("flap").prune(copy.deepcopy(dense), data, {"flops": 1 - spare / total}, 0)
    assert sum(site.units for site in sites_of(pruned)) == sum(site.units for site in sites_of(dense)) - 4
    torch.testing.assert_close(logits(pruned, data[0]), logits(dense, data[0]), atol=1e-5, rtol=1e-5)
