"""Uniform widths: a budget is met exactly, and where that takes layers of other widths it is said."""

from __future__ import annotations

import pytest

import niwaki
from tiny import batches, tiny


@pytest.mark.parametrize(
    "budget", [{"params": 0.7}, {"params": 0.5}, {"flops": 0.5}, {"flops": 0.6, "keep_layers": (0,)}]
)
def test_widths_that_differ_are_said(budget):
    config = niwaki.Structured(**budget, allocation="uniform", repair="none")
    done = niwaki.prune_(tiny("bert", layers=3), config, batches(3))
    cut = [site for site in done.layers if site.name.split(".")[1] not in map(str, budget.get("keep_layers", ()))]
    uneven = any(len({site.kept for site in cut if site.kind == kind}) > 1 for kind in ("attention", "ffn"))
    assert len(done.warnings) == uneven
    assert all("was met exactly by widths that differ" in warning for warning in done.warnings)


def test_other_allocations_promise_no_widths():
    assert not niwaki.prune_(tiny(), niwaki.Structured(flops=0.5, repair="none"), batches(3)).warnings
