"""A refit that is stopped goes on after what was fitted, to the same bytes."""

from __future__ import annotations

import pytest
import torch

import niwaki
from niwaki.begun import begun_kept
from niwaki.errors import WorkError
from niwaki.repair import block_reconstruction, sequential_least_squares
from tiny import batches, tiny, with_lora

STAGES = {
    "structured": (niwaki.Structured(flops=0.6), tiny),
    "layer-adaptive": (niwaki.LayerAdaptive(sparsity=0.6, allocation="uniform"), lambda: with_lora(tiny())),
    "fast": (niwaki.LayerAdaptive(sparsity=0.6, allocation="uniform", fast=True), lambda: tiny("llama")),
}


@pytest.mark.parametrize(("stage", "made"), STAGES.values(), ids=STAGES)
def test_a_refit_goes_on_where_it_was_stopped(stage, made, tmp_path, monkeypatch):
    real, sums, stop = sequential_least_squares._sums, [], 2

    def counted(*asked):
        if len(sums) == stop:
            raise WorkError("no more")
        sums.append(asked[0][0][0].name)
        return real(*asked)

    monkeypatch.setattr(sequential_least_squares, "_sums", counted)
    family = made().config.model_type
    data = batches(2, family=family)
    with pytest.raises(WorkError, match="no more"), begun_kept(tmp_path):
        niwaki.prune_(made(), stage, data)
    first, stop = list(sums), 1000
    (place,) = tmp_path.iterdir()
    assert {path.name for path in place.iterdir()} == {name.removeprefix("layer.").replace(".", "-") for name in first}
    last = sorted(place.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-1])  # damaged: made again
    sums.clear()
    again = made()
    with begun_kept(tmp_path):
        done = niwaki.prune_(again, stage, data)
    went_on = list(sums)
    sums.clear()
    alone = made()
    assert niwaki.prune_(alone, stage, data).layers == done.layers
    assert len(went_on) == len(sums) - 1
    wanted = alone.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


LEARNING = {
    "structured": (niwaki.Structured(flops=0.6), tiny),
    "layer-adaptive": (niwaki.LayerAdaptive(sparsity=0.6, allocation="uniform"), lambda: with_lora(tiny())),
    "norms": (niwaki.Structured(flops=0.6, reconstruct="norms"), lambda: tiny("llama")),
}


@pytest.mark.parametrize(("stage", "made"), LEARNING.values(), ids=LEARNING)
def test_what_a_layer_has_learned_is_not_learned_again(stage, made, tmp_path, monkeypatch):
    real, trained, stop = block_reconstruction._train, [], 1

    def counted(block, *asked):
        if len(trained) == stop:
            raise WorkError("no more")
        trained.append(block.index)
        real(block, *asked)

    monkeypatch.setattr(block_reconstruction, "_train", counted)
    data = batches(8, family=made().config.model_type)
    with pytest.raises(WorkError, match="no more"), begun_kept(tmp_path):
        niwaki.prune_(made(), stage, data)
    stop = 1000
    again = made()
    with begun_kept(tmp_path):
        niwaki.prune_(again, stage, data)
    assert trained == [0, 1, 2]
    alone = made()
    niwaki.prune_(alone, stage, data)
    assert trained == [0, 1, 2, 0, 1, 2]
    wanted = alone.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
