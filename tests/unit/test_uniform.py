"""Uniform widths: a budget is met exactly, and where that takes layers of other widths it is said."""

from __future__ import annotations

import json

import pytest
import torch

import niwaki
from niwaki.anatomy import count, sites_of
from niwaki.surgery import cut_
from tiny import batches, tiny


@pytest.mark.parametrize(
    "budget", [{"params": 0.7}, {"params": 0.5}, {"flops": 0.5}, {"flops": 0.6, "keep_layers": (0,)}]
)
def test_widths_that_differ_are_said(budget):
    config = niwaki.Structured(**budget, allocation="uniform", repair="none")
    done = niwaki.prune_(tiny("bert", layers=3), config, batches(3))
    cut = [site for site in done.layers if site.name.split(".")[1] not in map(str, budget.get("keep_layers", ()))]
    uneven = any(len({site.kept for site in cut if site.kind == kind}) > 1 for kind in ("attention", "ffn"))
    (warning,) = done.warnings  # no config of BERT has a key for the width of a head
    assert ("was met exactly by widths that differ" in warning) == uneven
    assert uneven or ("layers differ where keep_layers is 0" in warning) == ("keep_layers" in budget)


@pytest.mark.parametrize(("family", "plain"), [("qwen3", True), ("bert", False), ("llama", False), ("gpt2", False)])
def test_a_model_that_needs_niwaki_though_its_layers_are_alike_says_so(family, plain, tmp_path):
    """Three of four groups in all layers: 6 of 8 heads of Llama in a width of 32, which no whole number divides."""
    model, cut = tiny(family, layers=2), tiny(family, layers=2)
    cut_(cut, {site.name: torch.arange(site.units * 3 // 4) for site in sites_of(cut)})
    kept = count(cut, 12).block_params / count(model, 12).block_params
    config = niwaki.Structured(params=kept, allocation="uniform", repair="none", round_to=1)
    done = niwaki.prune_(model, config, batches(3, family=family))
    assert len({(site.kind, site.kept) for site in done.layers}) == 2
    assert bool(done.warnings) != plain
    assert plain or "no plain config of a" in done.warnings[0]
    niwaki.save(model, tmp_path / "a")
    found = json.loads((tmp_path / "a" / "config.json").read_text())
    assert ("quantization_config" in found) != plain


def test_other_allocations_promise_no_widths():
    assert not niwaki.prune_(tiny(), niwaki.Structured(flops=0.5, repair="none"), batches(3)).warnings
