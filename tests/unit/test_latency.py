"""Latency budgets: the table of timings, its cache, and plans that are timed and corrected."""

from __future__ import annotations

import json

import pytest
import torch

import niwaki
from niwaki.allocation import Bounds, global_threshold
from niwaki.anatomy import sites_of
from niwaki.evaluate.latency_table import LatencyTable, latency_table
from tiny import batches, tiny, with_lora


def test_a_table_never_falls_and_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path))
    model = with_lora(tiny())
    table = latency_table(model, 2, 8)
    for site in sites_of(model):
        assert len(table.costs[site.name]) == site.units + 1
        assert (table.costs[site.name].diff() >= 0).all()
    (file,) = tmp_path.iterdir()
    timings = json.loads(file.read_text())
    file.write_text(json.dumps({**timings, "model": 1e6, "ffn": {"8": 1.0, "48": 5.0}}))
    again = latency_table(model, 2, 8)
    assert again.costs["layer.0.ffn"][48] == pytest.approx(4.0)
    assert again.costs["layer.0.ffn"][28] == pytest.approx(2.0)
    assert again.fixed > 9e5
    file.write_text("{")
    assert latency_table(model, 2, 8).fixed < 9e5
    latency_table(model, 2, 9)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_in_the_costs_is_used():
    # Widths 1 to 4 cost the same, so nobody stops between them.
    costs = torch.tensor([0.0, 4.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 8.0]).double()
    scores = {"a": torch.arange(8, 0, -1).double(), "b": torch.arange(8, 0, -1).double()}
    kept = global_threshold(scores, {name: Bounds(costs, 1) for name in scores}, 12.0)
    assert sorted(len(units) for units in kept.values()) == [4, 8]


@pytest.mark.parametrize("bias", [1.0, 1.3])
def test_a_plan_is_corrected_until_the_measured_ratio_fits(monkeypatch, bias):
    """The machine, made of arithmetic here, is slower than the table says by `bias`."""
    model = tiny()
    units = {site.name: site.units for site in sites_of(model)}
    costs = {name: torch.arange(n + 1).double() * (6 if "attention" in name else 1) for name, n in units.items()}
    table = LatencyTable(costs, 20.0)
    monkeypatch.setattr("niwaki.allocation.budget.latency_table", lambda *_: table)

    def milliseconds(model):
        return 20.0 + bias * sum(float(costs[site.name][site.units]) for site in sites_of(model))

    monkeypatch.setattr(
        "niwaki.methods.structured.speedup", lambda dense, pruned, *_: milliseconds(dense) / milliseconds(pruned)
    )
    dense = milliseconds(model)
    result = niwaki.prune_(model, niwaki.Structured(latency=0.6), batches())
    assert result.kind == "latency"
    assert result.achieved == pytest.approx(milliseconds(model) / dense)
    assert result.achieved == pytest.approx(0.6, rel=0.05)
    assert result.warnings == ()


def test_a_latency_that_cannot_be_met_is_refused_or_said(monkeypatch):
    model = tiny()
    units = {site.name: site.units for site in sites_of(model)}
    table = LatencyTable({name: torch.arange(n + 1).double() for name, n in units.items()}, 100.0)
    monkeypatch.setattr("niwaki.allocation.budget.latency_table", lambda *_: table)
    with pytest.raises(niwaki.RequestError, match=r"latency must be at least 0\.\d+"):
        niwaki.prune_(model, niwaki.Structured(latency=0.1), batches())
    monkeypatch.setattr("niwaki.methods.structured.speedup", lambda *_: 1.0)
    result = niwaki.prune_(model, niwaki.Structured(latency=0.7), batches())
    assert "0.7" in result.warnings[0]
    assert "1.000" in result.warnings[0]
