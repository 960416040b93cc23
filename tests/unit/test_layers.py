"""`layers` tells of every site that was pruned what is left of what the dense model had."""

from __future__ import annotations

from niwaki.results import SiteResult, StageResult
from niwaki.run.layers import layers_left


def stage(*sites):
    return StageResult("a", "flops", 0.5, 0.5, 0.0, 0.0, 0.0, tuple(SiteResult(*site) for site in sites))


def left(stages, sizes=(), kept=()):
    return {
        layer["name"]: (layer["kept"], layer["total"], layer["importance"])
        for layer in layers_left(stages, dict(sizes), dict(kept))
    }


def test_a_site_that_is_cut_twice_counts_from_the_first():
    stages = [stage(("heads", "attention", 0.5, 6, 12)), stage(("heads", "attention", 0.2, 3, 6))]
    assert left(stages) == {"heads": (3, 12, 0.2)}
    assert layers_left(stages, {}, {})[0]["ratio"] == 0.75


def test_groups_and_then_query_heads():
    groups, heads = stage(("heads", "attention", 0.5, 3, 4)), stage(("heads", "attention", 0.5, 4, 6))
    assert left([groups, heads]) == {"heads": (4, 8, 0.5)}


def test_a_site_that_is_gone_stays_gone():
    assert left([stage(("ffn", "ffn", 0.5, 0, 9)), stage(("ffn", "ffn", 0.0, 0, 0))]) == {"ffn": (0, 9, 0.0)}


def test_what_an_earlier_stage_pruned_is_not_forgotten():
    units, weights = stage(("ffn", "ffn", 0.5, 2, 4)), stage(("up", "linear", 0.3, 30, 40))
    found = left([units, weights], {"up": 80}, {"up": 30})
    assert found == {"ffn": (2, 4, 0.5), "up": (30, 80, 0.3)}


def test_a_linear_that_was_cut_after_it_was_masked_is_counted_at_the_end():
    units, weights = stage(("ffn", "ffn", 0.5, 2, 4)), stage(("up", "linear", 0.3, 60, 80))
    assert left([weights, units], {"up": 80}, {"up": 29}) == {"up": (29, 80, 0.3), "ffn": (2, 4, 0.5)}


def test_of_a_linear_that_is_gone_nothing_is_left():
    units, weights = stage(("ffn", "ffn", 0.5, 0, 4)), stage(("up", "linear", 0.3, 60, 80))
    assert left([weights, units], {"up": 80}) == {"up": (0, 80, 0.3), "ffn": (0, 4, 0.5)}


def test_nothing_was_pruned():
    assert layers_left([stage()], {}, {}) == []
