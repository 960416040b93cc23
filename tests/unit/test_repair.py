"""The refit makes the pruned model closer to the dense one, and exact where exactness is possible."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from niwaki.adapters import effective_weight
from niwaki.anatomy import linears_of, sites_of
from niwaki.errors import WorkError
from niwaki.numerics.solve import damp
from niwaki.repair.least_squares import DAMPING, Sums, optimum, ridge_share
from niwaki.repair.refit import refit_
from niwaki.surgery import cut_
from tiny import batches, logits, tiny, with_lora


def _kl(model, dense):
    total = 0.0
    for batch in batches(rows=24, seed=9):
        p, q = (logits(m, batch).log_softmax(-1) for m in (dense, model))
        total += float((p.exp() * (p - q)).sum())
    return total


@pytest.mark.parametrize("lora", [False, True])
def test_each_repair_is_closer_to_the_dense_model(lora):
    dense = with_lora(tiny()) if lora else tiny()
    distances = {}
    for repair in ("none", "bias", "least-squares"):
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.6, repair=repair, steps=1), batches(count=6, rows=24))
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
    refit_(model, dense, batches(count=6, rows=24), plan, "least-squares")
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


@pytest.mark.parametrize("biased", [True, False])
def test_the_optimum_is_that_of_ridge_regression_and_its_factor_that_of_what_the_bias_leaves(biased):
    linear = linears_of(tiny())[0]
    if not biased:
        linear.module.bias = None
    rows, columns = linear.shape
    x, t = torch.randn(200, columns).double() + 1, torch.randn(200, rows).double()
    both = torch.cat([torch.ones(200, 1).double(), x], 1)
    best = optimum(linear, Sums(both.T @ both, t.T @ both, 200))
    seen = both if biased else x
    moments = seen.T @ seen
    ridge = ridge_share(columns, 200) * float(moments.diagonal().mean())
    moments.diagonal().add_(ridge)
    before = effective_weight(linear.module).double()
    before = torch.cat([linear.module.bias.detach().double()[:, None], before], 1) if biased else before
    wanted = (t.T @ seen + ridge * before) @ moments.inverse()
    found = torch.cat([best.bias[:, None], best.weight], 1) if biased else best.weight
    torch.testing.assert_close(found, wanted)
    left = moments[1:, 1:] - torch.outer(moments[1:, 0], moments[1:, 0]) / moments[0, 0] if biased else moments
    torch.testing.assert_close(best.factor @ best.factor.T, left)
    torch.testing.assert_close(best.mean, moments[1:, 0] / moments[0, 0] if biased else torch.zeros_like(best.mean))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (niwaki.LayerAdaptive(sparsity=0.5, allocation="uniform", reconstruct="none"), 6.0),
        (niwaki.LayerAdaptive(sparsity=0.5, allocation="uniform", repair="none"), 3.5),
        (niwaki.LayerAdaptive(sparsity=0.5, allocation="uniform", fast=True), 4.0),
        (niwaki.LayerAdaptive(sparsity=0.5, allocation="uniform", fast=True, repair="none"), 2.5),
        (niwaki.Structured(flops=0.99, reconstruct="none"), 7.0),
        (niwaki.Structured(flops=0.99, repair="bias"), 5.7),
    ],
)
def test_the_passes_that_are_told_are_about_those_that_ran(config, told, monkeypatch):
    """By the products of all linears, of the dense model too; without targets it does not run."""
    done, linear, data = [0], torch.nn.functional.linear, batches(2)

    def counted(input, weight, bias=None):
        done[0] += input.numel() // max(1, input.shape[-1]) * weight.numel()
        return linear(input, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    model = tiny()
    for batch in data:
        logits(model, batch)
    one, done[0] = done[0], 0
    assert niwaki.prune_(model, config, data).forward_passes == told
    assert done[0] / one == pytest.approx(told, rel=0.2)


def test_same_seed_same_bytes():
    models = [tiny() for _ in range(2)]
    for model in models:
        niwaki.prune_(model, niwaki.Structured(flops=0.5), batches())
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("inputs", "tokens", "share"), [(384, 1_000_000, DAMPING), (1536, 15_360, 0.1), (1536, 100, 1.0), (0, 0, DAMPING)]
)
def test_the_ridge_is_larger_the_fewer_tokens_there_are_for_an_input(inputs, tokens, share):
    assert ridge_share(inputs, tokens) == pytest.approx(share)
