"""OWL as its authors' code has it, and subsets that are samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import niwaki
from niwaki.allocation.sparsity import LinearProfile, owl
from niwaki.anatomy import linears_of
from niwaki.observe import Need, observe
from niwaki.scoring.layers import OUTLIER, outliers
from niwaki.scoring.sensitivity import drawn_rows
from niwaki.scoring.weights import wanda
from tiny import batches, tiny


def test_owl_is_the_published_formula():
    shares = np.array([0.02, 0.05, 0.01, 0.09])
    profiles = {f"l{i}": LinearProfile((100, 100), importance=share) for i, share in enumerate(shares)}
    found = owl(profiles, round(0.7 * 40_000), 1.0)
    scaled = (shares - shares.min()) * (1 / (shares.max() - shares.min()) * 0.08 * 2)
    density = scaled - scaled.mean() + (1 - 0.7)
    assert [found[name] for name in profiles] == pytest.approx(((1 - density) * 10_000).tolist(), abs=1)


def test_outliers_are_counted_over_the_whole_block():
    model = tiny()
    statistics = observe(model, batches(), Need())
    found = outliers(linears_of(model), statistics, 0)
    for layer in range(3):
        inside = [linear for linear in linears_of(model) if linear.layer == layer]
        products = torch.cat([wanda(linear, statistics, 0).flatten() for linear in inside])
        share = float((products > OUTLIER * products.mean()).double().mean())
        assert [found[linear.name] for linear in inside] == pytest.approx([share] * len(inside))


def test_owl_goes_by_outliers_unless_another_score_is_asked():
    assert niwaki.LayerAdaptive(sparsity=0.5, allocation="owl").resolved().layer_score == "outliers"
    asked = niwaki.LayerAdaptive(sparsity=0.5, allocation="owl", layer_score="fisher")
    assert asked.resolved().layer_score == "fisher"


def test_the_rows_that_sensitivity_looks_at_are_drawn_from_all():
    data = [{"input_ids": torch.full((8, length), length)} for length in range(1, 21)]  # as sorted by length
    drawn = [drawn_rows(data, 64, seed) for seed in (0, 0, 1)]
    lengths = [sorted(int(row[0]) for part in rows for row in part["input_ids"]) for rows in drawn]
    assert all(len(found) == 64 for found in lengths)
    assert lengths[0] == lengths[1] != lengths[2]
    assert 8 < np.mean(lengths[0]) < 13
    assert sum(len(part["input_ids"]) for part in drawn_rows(data[:3], 64, 0)) == 24


@pytest.mark.parametrize(
    "asked", [{"layer_score": "sensitivity"}, {"importance_strength": "auto"}], ids=lambda asked: next(iter(asked))
)
def test_positions_that_all_rows_share_stay_whole_where_rows_are_drawn(asked):
    config = niwaki.LayerAdaptive(
        sparsity=0.5, allocation="inverse-importance", weight_score="magnitude", repair="none", **asked
    )
    found = []
    for more in ({}, {"position_ids": torch.arange(12)[None], "inputs_embeds": None}):
        data = [batch | more for batch in batches(count=2, rows=40, family="bert")]
        found.append([layer.kept for layer in niwaki.prune_(tiny("bert"), config, data).layers])
    assert found[0] == found[1]


def test_the_importance_that_is_reported_is_what_decided():
    data = batches()
    for allocation in ("search", "inverse-importance", "owl", "global", "erk", "lamp", "uniform"):
        result = niwaki.prune_(tiny(), niwaki.LayerAdaptive(sparsity=0.5, allocation=allocation), data)
        found = [layer.importance for layer in result.layers]
        assert sum(found) == pytest.approx(1)
        assert all(value >= 0 for value in found)
        assert (len(set(found)) == 1) == (allocation == "uniform")
