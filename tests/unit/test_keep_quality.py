"""The budget that keeps the quality is searched within what model, bounds and hand allow, and is the one delivered."""

from __future__ import annotations

import pytest
import torch

import niwaki
from niwaki import LayerAdaptive, Structured
from niwaki.begun import begun_kept
from niwaki.methods.prune import AROUND, for_any_budget
from tiny import batches, tiny

DATA, HELD = batches(3), batches(2, rows=8, seed=5)
SEARCH = {"keep_quality": 0.01, "tries": 3}
"""Every try keeps it, so that each is smaller than the one before."""


def sparse():
    """A model of which most is zero already."""
    model = tiny()
    niwaki.prune_(model, LayerAdaptive(sparsity=0.7, weight_score="magnitude", repair="none"), DATA)
    return model


SEARCHES = {
    "zeros": (LayerAdaptive(**SEARCH), tiny),
    "zeros without repair": (LayerAdaptive(**SEARCH, repair="none"), tiny),
    "zeros of an older solver": (LayerAdaptive(**SEARCH, repair="none", weight_score="sparsegpt", fast=True), tiny),
    "ranked zeros": (LayerAdaptive(**SEARCH, repair="none", weight_score="wanda", allocation="uniform"), tiny),
    "blocks": (LayerAdaptive(**SEARCH, pattern="4x1"), tiny),
    "zeros in one layer": (LayerAdaptive(**SEARCH, keep_layers=(0,)), tiny),
    "few zeros": (LayerAdaptive(**SEARCH, max_sparsity=0.4), tiny),
    "many zeros": (LayerAdaptive(**SEARCH, min_sparsity=0.6), tiny),
    "more zeros": (LayerAdaptive(**SEARCH, allocation="uniform"), sparse),
    "units": (Structured(**SEARCH), tiny),
    "units without repair": (Structured(**SEARCH, repair="none", keep_layers=(1,)), tiny),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_what_was_measured_is_what_is_delivered(name, tmp_path):
    config, made = SEARCHES[name]
    model = made()
    with begun_kept(tmp_path):  # as of a command, which takes up what it has done
        done = niwaki.prune_(model, config, DATA, held_out=HELD)
    tries = [one[done.kind] for one in done.details["keep_quality"]["tries"]]
    assert len(set(tries)) == 3
    assert done.requested == tries[-1]
    coarse = {"sparsity": 1e-4 if config.pattern == "unstructured" else 0.02} if done.kind == "sparsity" else {}
    assert done.achieved == pytest.approx(done.requested, abs=coarse.get(done.kind, 0.05))
    alone = made()
    around = {"around": AROUND} if done.kind == "sparsity" else {}
    plan = niwaki.plan(alone, for_any_budget(alone, config), DATA, **around)
    niwaki.apply_(alone, plan.at(**{done.kind: done.requested}), DATA)
    wanted = alone.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_training_data_that_come_once_are_there_for_every_try():
    config = Structured(**SEARCH, recover_epochs=1)
    done = niwaki.prune_(tiny(), config, DATA, held_out=HELD, training_data=(batch for batch in DATA))
    assert len(done.details["keep_quality"]["tries"]) == 3


def test_the_hand_bounds_the_search(tmp_path):
    units = niwaki.plan(tiny(), Structured(flops=0.9), DATA)
    every = {site.name: range(site.units) for site in units.sites if site.kind == "ffn"}
    units.edit(keep=every).save(tmp_path / "units")
    done = niwaki.prune_(tiny(), Structured(**SEARCH, plan=str(tmp_path / "units")), DATA, held_out=HELD)
    assert {site.kept for site in done.layers if site.kind == "ffn"} == {len(next(iter(every.values())))}
    zeros = niwaki.plan(tiny(), LayerAdaptive(sparsity=0.3), DATA).edit(sparsity={"layer.0": 0.1})
    assert zeros.span[0] > niwaki.plan(tiny(), LayerAdaptive(sparsity=0.3), DATA).span[0]
    zeros.save(tmp_path / "zeros")
    done = niwaki.prune_(tiny(), LayerAdaptive(**SEARCH, plan=str(tmp_path / "zeros")), DATA, held_out=HELD)
    ours = [one for one in done.layers if one.name.startswith("layer.0.")]
    assert {round(1 - one.kept / one.total, 2) for one in ours} == {0.1}
    assert done.achieved == pytest.approx(done.requested, abs=1e-4)
