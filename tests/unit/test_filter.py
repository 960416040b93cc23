"""What is spared is not cut, and the budget is met all the same, or said to be out of reach."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from niwaki.adapters import mask_of
from niwaki.anatomy import linears_of, sites_of
from niwaki.config import Recipe, recipe_from_dict, recipe_to_dict
from tiny import batches, tiny, with_lora


def units(model):
    return {site.name: site.units for site in sites_of(model)}


@pytest.mark.parametrize("family", ["distilbert", "llama", "modernbert"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_heads_and_neurons_of_what_is_spared_stay(family, allocation):
    model = tiny(family)
    before = units(model)
    asked = niwaki.Structured(params=0.8, keep_layers=(0,), only="ffn", allocation=allocation)
    done = niwaki.prune_(model, asked, batches(family=family))
    after = units(model)
    spared = [name for name in before if name.startswith("layer.0.") or name.endswith("attention")]
    assert all(after[name] == before[name] for name in spared)
    assert sum(after.values()) < sum(before.values())
    assert done.achieved <= 0.8


@pytest.mark.parametrize("options", [{}, {"repair": "none", "weight_score": "magnitude"}, {"allocation": "global"}])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_of_what_is_spared_stay(options, lora):
    model = with_lora(tiny()) if lora else tiny()
    total = sum(linear.size for linear in linears_of(model))
    asked = niwaki.LayerAdaptive(sparsity=0.4, **options)
    done = niwaki.prune_(model, asked, batches(), filter=lambda site: site.kind == "ffn")
    assert done.achieved == pytest.approx(0.4, abs=1 / total)
    for linear in linears_of(model):
        mask = mask_of(linear.module)
        assert mask is None or bool(mask.all()) or linear.site.kind == "ffn"


def test_a_pattern_holds_where_weights_may_go():
    model = tiny()
    linears = linears_of(model)
    share = sum(x.size for x in linears if x.site.kind == "ffn") / sum(x.size for x in linears)
    done = niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, pattern="2:4", only="ffn"), batches())
    assert done.requested == pytest.approx(0.5 * share)
    assert done.achieved == pytest.approx(0.5 * share)
    assert done.warnings == ()


def test_zeros_that_were_there_stay_in_what_is_spared():
    model, data = tiny(), batches()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.3), data)
    before = {linear.name: mask_of(linear.module).clone() for linear in linears_of(model)}
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, keep_layers=(1,)), data)
    for linear in linears_of(model):
        mask = mask_of(linear.module)
        assert not bool((mask & ~before[linear.name]).any())
        assert linear.layer != 1 or torch.equal(mask, before[linear.name])


def test_a_budget_out_of_reach_says_the_least():
    model, before = tiny(), copy.deepcopy(tiny().state_dict())
    with pytest.raises(
        niwaki.RequestError, match=r"params must be at least 0\.[4-9]\d+ with these.* where only is attention, got 0\.3"
    ):
        niwaki.prune_(model, niwaki.Structured(params=0.3, only="attention"), batches())
    said = r"sparsity must be 0 to 0\.[4-7]\d* with .* where only is ffn, got 0\.9"
    with pytest.raises(niwaki.RequestError, match=said):
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.9, only="ffn"), batches())
    said = r"sparsity must be 0 to 0\.\d* with .* where keep_layers is 0 2 and only is ffn, got 0\.9"
    with pytest.raises(niwaki.RequestError, match=said):
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.9, only="ffn", keep_layers=(0, 2)), batches())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep_layers": (3,)}, "keep_layers must be 0 to 2, the model's layers, got 3"),
        ({"keep_layers": ("last",)}, "keep_layers must be whole numbers from 0, got 'last'"),
        ({"only": "heads"}, "only must be one of attention, ffn"),
        ({"spared": ("layer.9.ffn",)}, "spared must be sites of the model .*got 'layer.9.ffn'"),
        ({"only": "ffn", "drop_layers": 1}, "drop_layers must be 0 where sites are spared"),
    ],
)
def test_what_is_not_there_cannot_be_spared(options, said):
    with pytest.raises(niwaki.RequestError, match=said):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.9, **options), batches())


def test_recipes_hold_what_is_spared():
    stage = niwaki.Structured(flops=0.5, keep_layers=("0", "11"), spared=("layer.3.ffn",))  # type: ignore[arg-type]
    assert stage.keep_layers == (0, 11)
    stages = (stage, niwaki.LayerAdaptive(0.5, only="ffn"))
    plain = recipe_to_dict(Recipe(model="m", out="o", train_data="t", eval_data="e", stages=stages))
    assert plain["stages"][0]["keep_layers"] == [0, 11]
    assert recipe_from_dict(plain).stages[0] == stage
    assert recipe_from_dict(plain).stages[1].only == "ffn"  # type: ignore[union-attr]


def test_scores_of_what_may_be_cut():
    data = batches()
    found = niwaki.score(tiny(), data, filter=lambda site: site.kind == "ffn" and site.layer > 0)
    assert set(found) == set(found.importance) == {"layer.1.ffn", "layer.2.ffn"}
    asked = niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude")
    found = niwaki.score(tiny(), data, asked, filter=lambda site: site.layer == 0 and site.kind == "ffn")
    assert set(found) == {"layer.0.up", "layer.0.down"}


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.4},
        {"sparsity": 0.4, "reallocation": "within"},
        {"sparsity": 0.4, "pattern": "4x1"},
        {"sparsity": 0.5, "pattern": "2:4", "schedule": "constant"},
    ],
    ids=["across", "within", "blocks", "n:m"],
)
@pytest.mark.parametrize("lora", [False, True])
def test_masks_that_move_leave_what_is_spared(options, lora):
    model = with_lora(tiny()) if lora else tiny()
    linears = linears_of(model)
    total = sum(linear.size for linear in linears)
    share = sum(x.size for x in linears if x.site.kind == "ffn") / total if "pattern" in options else 1.0
    asked = niwaki.DynamicSparsityTraining(**options, epochs=3, interval=1)
    done = niwaki.prune_(model, asked, batches(), filter=lambda site: site.kind == "ffn")
    wanted = 0.5 * share if ":" in options.get("pattern", "") else 0.4
    assert done.requested == pytest.approx(wanted)
    assert done.achieved == pytest.approx(wanted, abs=4 / total)
    assert {site.name for site in done.layers} == {x.name for x in linears if x.site.kind == "ffn"}
    for linear in linears:
        assert (mask_of(linear.module) is None) == (linear.site.kind == "attention")


def test_masks_that_move_count_the_zeros_that_stay():
    model, data = tiny(), batches(count=2)
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.3), data)
    linears = [linear for linear in linears_of(model) if linear.site.kind == "attention"]
    before = [torch.as_tensor(mask_of(linear.module)).clone() for linear in linears]
    total = sum(linear.size for linear in linears_of(model))
    asked = niwaki.DynamicSparsityTraining(sparsity=0.5, only="ffn", epochs=2, interval=2)
    done = niwaki.prune_(model, asked, data)
    assert done.achieved == pytest.approx(0.5, abs=1 / total)
    assert done.details["course"][-1]["sparsity"] == pytest.approx(done.achieved, abs=1e-9)
    zeros = sum(int((~torch.as_tensor(mask_of(linear.module))).sum()) for linear in linears_of(model))
    assert zeros == round(0.5 * total)
    for linear, mask in zip(linears, before, strict=True):
        assert torch.equal(torch.as_tensor(mask_of(linear.module)), mask)


def test_masks_that_move_cannot_take_what_is_not_there():
    asked = niwaki.DynamicSparsityTraining(sparsity=0.8, only="ffn", epochs=3, interval=1)
    with pytest.raises(niwaki.RequestError, match=r"sparsity must be 0 to 0\.\d+ with .* where only is ffn, got 0\.8"):
        niwaki.prune_(tiny(), asked, batches())
    with pytest.raises(niwaki.RequestError, match="keep_layers must be 0 to 2"):
        niwaki.prune_(tiny(), niwaki.DynamicSparsityTraining(sparsity=0.5, keep_layers=(7,)), batches())
