"""Whole layers go by block influence; what is left is what the model without them would be."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from niwaki.anatomy import count, layers_of, sites_of
from tiny import batches, decoders, logits, tiny


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "bert"])
def test_the_layer_that_does_least_goes(family):
    model, data = tiny(family), batches(family=family)
    with torch.no_grad():  # layer 1 hardly does anything
        for site in sites_of(model):
            if site.layer == 1:
                for parameter in site.output.parameters():
                    parameter.mul_(1e-3)
    without = copy.deepcopy(model)
    config = niwaki.Structured(flops=0.67, drop_layers=1, repair="none")
    result = niwaki.prune_(model, config, data)
    assert [site.units > 0 for site in sites_of(model)] == [True, True, False, False, True, True]
    assert result.achieved == pytest.approx(2 / 3)
    assert count(model, 10.0).block_flops == pytest.approx(2 / 3 * count(without, 10.0).block_flops)
    if family in decoders():
        del layers_of(without)[1]
        layers_of(without)[1].self_attn.layer_idx = 1
        without.config.num_hidden_layers = 2
        without.config.layer_types = ["sliding_attention"] * 2 if family == "gemma2" else None
        torch.testing.assert_close(logits(model, data[0]), logits(without, data[0]), rtol=0, atol=1e-5)


def test_labels_that_are_missing_are_missed_before_a_layer_goes():
    model, data = tiny("bert"), [{k: v for k, v in batch.items() if k != "labels"} for batch in batches()]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(niwaki.RequestError, match="data must hold labels"):
        niwaki.prune_(model, niwaki.Structured(flops=0.5, drop_layers=1, neuron_score="fisher"), data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropping_and_cutting_meet_one_budget(tmp_path):
    model = tiny("llama")
    result = niwaki.prune_(model, niwaki.Structured(flops=0.5, drop_layers=1), batches(family="llama"))
    assert 0.4 < result.achieved <= 0.5
    assert sum(site.units == 0 for site in sites_of(model)) == 2
    niwaki.save(model, tmp_path / "a")
    batch = batches(family="llama")[0]
    assert torch.equal(logits(niwaki.load(tmp_path / "a"), batch), logits(model, batch))


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("llama", {"flops": 0.9, "drop_layers": 1}, "drop_layers must be at most 0, .* flops 0.9 .* got 1"),
        ("llama", {"flops": 0.3, "drop_layers": 3}, "drop_layers must be at most 2, .* got 3"),
        ("mpnet", {"flops": 0.9, "drop_layers": 1}, "drop_layers must be 0 .* heads cannot be removed"),
    ],
)
def test_wrong_requests(family, options, words):
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.prune_(tiny(family), niwaki.Structured(**options), batches(family=family))


def test_a_negative_number_is_refused():
    with pytest.raises(niwaki.RequestError, match="drop_layers must be at least 0"):
        niwaki.Structured(flops=0.5, drop_layers=-1)
