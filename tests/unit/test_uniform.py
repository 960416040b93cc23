"""Uniform widths: a budget is met exactly, and where that takes layers of other widths it is said."""

from __future__ import annotations

import pytest

import niwaki
from tiny import batches, tiny


@pytest.mark.parametrize(
    "budget", [{"params": 0.7}, {"params": 0.5}, {"flops": 0.5}, {"flops": 0.6, "keep_layers": (0,)}]
)
def test_widths_that_differ_are_said(budget):
    model = tiny("bert", layers=3)
    done = niwaki.prune_(model, niwaki.Structured(**budget, allocation="uniform", repair="none"), batches(3))
    widths = {
        kind: {site.kept for site in done.layers if site.kind == kind and "keep_layers" not in budget}
        for kind in ("attention", "ffn")
    }
    if "keep_layers" in budget:
        widths = {"both": {(a.kept, b.kept) for a, b in zip(done.layers[2::2], done.layers[3::2], strict=True)}}
    uneven = any(len(each) > 1 for each in widths.values())
    assert len(done.warnings) == uneven
    assert all("was met exactly by widths that differ" in warning for warning in done.warnings)


def test_other_allocations_promise_no_widths():
    assert not niwaki.prune_(tiny(), niwaki.Structured(flops=0.5, repair="none"), batches(3)).warnings
