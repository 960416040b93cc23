"""The refit makes the pruned model closer to the dense one, and exact where exactness is possible."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from niwaki.anatomy import sites_of
from niwaki.errors import WorkError
from niwaki.repair import refit_
from niwaki.solve import damp
from niwaki.surgery import cut_
from tiny import batches, logits, tiny, with_lora


def _kl(model, dense):
    total = 0.0
    for batch in batches(count=8, seed=9):
        p, q = (logits(m, batch).log_softmax(-1) for m in (dense, model))
        total += float((p.exp() * (p - q)).sum())
    return total


@pytest.mark.parametrize("lora", [False, True])
def test_each_repair_is_closer_to_the_dense_model(lora):
    dense = with_lora(tiny()) if lora else tiny()
    distances = {}
    for repair in ("none", "bias", "least-squares"):
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.6, repair=repair, steps=1), batches(count=24))
        distances[repair] = _kl(model, dense)
    assert distances["least-squares"] < distances["bias"] < distances["none"]


def test_a_duplicated_neuron_is_removed_at_almost_no_cost():
    dense = tiny()
    ffn = dense.distilbert.transformer.layer[0].ffn
    with torch.no_grad():
        ffn.lin1.weight[5], ffn.lin1.bias[5] = ffn.lin1.weight[4].clone(), ffn.lin1.bias[4].clone()
    model = copy.deepcopy(dense)
    plan = {site.name: torch.arange(site.units) for site in sites_of(model)}
    plan["layer.0.ffn"] = torch.tensor([u for u in range(48) if u != 5])
    cut_(model, plan)
    broken = _kl(model, dense)
    refit_(model, dense, batches(count=24), plan, "least-squares")
    assert _kl(model, dense) < 0.02 * broken


def test_nothing_removed_changes_nothing():
    dense = tiny()
    model = copy.deepcopy(dense)
    niwaki.prune_(model, niwaki.Structured(flops=1.0, steps=1), batches())
    torch.testing.assert_close(logits(model, batches()[0]), logits(dense, batches()[0]), rtol=0, atol=1e-5)


def test_singular_moments_are_damped_and_hopeless_ones_named():
    assert torch.isfinite(damp(torch.ones(4, 4).double(), "here").factor).all()
    with pytest.raises(WorkError, match="here"):
        damp(torch.full((3, 3), torch.nan).double(), "here")


def test_same_seed_same_bytes():
    models = [tiny() for _ in range(2)]
    for model in models:
        niwaki.prune_(model, niwaki.Structured(flops=0.5), batches())
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
