"""Curves of loss by sparsity: measured around what is asked, and what they say is the loss of what goes."""

from __future__ import annotations

import pytest
import torch

import niwaki
from niwaki.anatomy import linears_of, weight_of
from niwaki.config.patterns import Unstructured
from niwaki.methods import weight_profiles
from niwaki.observe import Need, observe
from niwaki.observe.moments import with_moments
from niwaki.sparsify import obs
from niwaki.sparsify.curves import loss_curve, sparsities_around
from tiny import batches, tiny


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.3, 0.5, 0.9, 0.98, 0.999])
def test_a_curve_is_measured_around_what_is_asked(sparsity):
    at = sparsities_around(sparsity)
    assert list(at) == sorted(set(at))
    assert 0 < at[0] < at[-1] < 1
    assert max(sparsity, 0.02) in [pytest.approx(each) for each in at]
    assert at[0] < max(sparsity, 0.02) < at[-1]


@pytest.mark.parametrize("by_row", [False, True])
def test_a_curve_rises_to_the_loss_of_the_whole_linear(by_row):
    model, data = tiny(), batches()
    statistics = observe(model, data, Need(output_gradients=True))
    for linear, own in with_moments(model, statistics, data, None):
        sums = own.linears[linear.name]
        curve = loss_curve(linear, own, sparsities_around(0.6), by_row=by_row)
        losses = [loss for _, loss in curve]
        assert curve[0] == (0.0, 0.0)
        assert losses == sorted(losses)
        weight = weight_of(linear.module).detach().double()
        by_output = ((weight @ sums.moments) * weight).sum(1) / statistics.tokens
        whole = 0.5 * float(sums.gradient_squares.double() @ by_output) / statistics.rows
        assert curve[-1] == (1.0, pytest.approx(whole, rel=1e-4))


@pytest.mark.parametrize("together", [2**23, 2 * 40 * 300, 1])
def test_several_numbers_of_zeros_at_once_are_each_alone(together, monkeypatch):
    monkeypatch.setattr(obs, "TOGETHER", together)
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, 300, generator=generator), torch.randn(900, 300, generator=generator)
    upper = obs.obs_factor(torch.linalg.cholesky((x.T @ x).double())).float()
    zeros = [0, 100, 6000, 7001, 11999, 12000]
    for count, found in zip(zeros, obs.obs_prune_each(weight, upper, zeros, "it"), strict=True):
        alone, mask = obs.obs_prune(weight, upper, count, Unstructured(), "it")
        assert int((found == 0).sum()) == int((~mask).sum()) == count
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_each_step_measures_around_its_own_sparsity(monkeypatch):
    asked = []
    monkeypatch.setattr(weight_profiles, "sparsities_around", lambda s: asked.append(s) or sparsities_around(s))
    model = tiny()
    niwaki.prune_(
        model, niwaki.LayerAdaptive(sparsity=0.8, steps=2, weight_score="magnitude", repair="none"), batches()
    )
    assert sorted(set(asked)) == [pytest.approx(0.7), pytest.approx(0.8)]
    assert len(asked) == 2 * len(linears_of(model))
    assert torch.isfinite(torch.tensor(asked)).all()
