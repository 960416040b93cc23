"""A plan says what pruning would do, for other budgets too, and carried out it is what pruning does."""

from __future__ import annotations

import json

import pytest
import torch

import niwaki
from niwaki import LayerAdaptive, Plan, RequestError, Structured
from niwaki.anatomy import count
from niwaki.data import mean_length
from niwaki.methods.plan import model_digest
from tiny import batches, logits, tiny, with_lora

DATA = batches(2)


def weights(model):
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def same(one, other):
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def pruned(config, family="distilbert"):
    model = tiny(family)
    return model, niwaki.prune_(model, config, batches(2, family=family))


CONFIGS = [
    (Structured(flops=0.7), Structured(flops=0.4), "distilbert"),
    (Structured(flops=0.7, reconstruct="norms"), Structured(params=0.6, reconstruct="norms"), "llama"),
    (LayerAdaptive(sparsity=0.4), LayerAdaptive(sparsity=0.7), "distilbert"),
    (LayerAdaptive(sparsity=0.4, allocation="global", weight_score="gradient", repair="none"),
     LayerAdaptive(sparsity=0.6, allocation="global", weight_score="gradient", repair="none"), "distilbert"),
    (LayerAdaptive(sparsity=0.4, allocation="lamp", weight_score="wanda"),
     LayerAdaptive(sparsity=0.995, allocation="lamp", weight_score="wanda"), "distilbert"),
]  # fmt: skip


def test_a_plan_is_of_a_model_with_all_that_it_computes_by():
    """Not of its tensors alone: how much an adapter counts, and which one acts, stands elsewhere."""
    model = with_lora(tiny())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    digests = [model_digest(model)]
    for change in (
        lambda: model.base_model.model.distilbert.transformer.layer[0].ffn.lin1.set_scale("default", 3.0),
        lambda: setattr(model.base_model.model.config, "activation", "relu"),
        lambda: model.base_model.disable_adapter_layers(),
    ):
        change()
        digests.append(model_digest(model))
    assert len(set(digests)) == 4
    again = tiny()
    assert model_digest(again) == model_digest(tiny())
    logits(again, batches()[0])
    again(**batches()[0]).loss.backward()
    assert model_digest(again) == model_digest(tiny())  # nor by what running a model leaves in its config


@pytest.mark.parametrize(("made_for", "asked", "family"), CONFIGS)
def test_at_another_budget_and_from_a_file_it_is_what_pruning_does(made_for, asked, family, tmp_path):
    model, data = tiny(family), batches(2, family=family)
    before = weights(tiny(family))
    kind, value = asked.budget
    around = {"around": [value]} if kind == "sparsity" else {}
    plan = niwaki.plan(model, made_for, data, **around)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    plan.save(tmp_path / "plan")
    read = Plan.load(tmp_path / "plan")
    assert str(read) == str(plan)
    done = niwaki.apply_(model, read.at(**{kind: value}), data)
    expected, said = pruned(asked, family)
    assert same(model, expected)
    assert done.layers == said.layers
    assert done.achieved == said.achieved
    assert not done.warnings
    assert done.forward_passes + plan.passes.forward == said.forward_passes
    # What is in memory went through no file, and was not touched by what was done to the model.
    again = tiny(family)
    niwaki.apply_(again, plan.at(**{kind: value}), data)
    assert same(again, expected)
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["origin"]["rows"] == 24


@pytest.mark.parametrize("config", [Structured(flops=0.6), LayerAdaptive(sparsity=0.5)])
def test_what_other_data_or_weights_need_is_observed_anew(config):
    model, other = tiny(), batches(2, seed=7)
    plan = niwaki.plan(model, config, DATA)
    done = niwaki.apply_(model, plan, other)
    assert done.achieved == pytest.approx(config.budget[1], abs=0.01)
    assert done.forward_passes == 6  # one to observe, five to refit
    changed = tiny()
    with torch.no_grad():
        next(changed.parameters()).add_(0.1)
    assert "other weights" in niwaki.apply_(changed, plan, DATA).warnings[0]


def test_a_plan_for_another_model_is_refused(tmp_path):
    plan = niwaki.plan(tiny(), Structured(flops=0.6), DATA)
    narrow, _ = pruned(Structured(flops=0.6))
    with pytest.raises(RequestError, match=r"plan must be of this model: layer\.\d\.\w+ has \d+ units, got"):
        niwaki.apply_(narrow, plan, DATA)
    zeros = niwaki.plan(tiny(), LayerAdaptive(sparsity=0.5, allocation="uniform", weight_score="magnitude"), DATA)
    with pytest.raises(RequestError, match="plan must be of this model, with"):
        niwaki.apply_(narrow, zeros, DATA)
    for wrong in ({"schema": 2}, {"schema": 1, "kind": "other"}, []):
        (tmp_path / "plan.json").write_text(json.dumps(wrong))
        with pytest.raises(RequestError, match="plan must be a folder that niwaki plan wrote"):
            Plan.load(tmp_path)


def test_the_hand_decides_and_the_budget_holds():
    plan = niwaki.plan(tiny(), Structured(flops=0.5), DATA)
    site = "layer.0.attention"
    lowest = int(plan.scores[site].argmin())
    gone = sorted({0, 1, 2, 3} - {lowest})
    edited = plan.edit(keep={site: [lowest]}, drop={"layer.1.attention": [2]}).edit(drop={site: gone})
    assert edited.kept[site].tolist() == [lowest]
    assert 2 not in edited.kept["layer.1.attention"]
    assert edited.achieved == pytest.approx(0.5, abs=0.01)
    smaller = edited.at(flops=0.3)
    assert smaller.kept[site].tolist() == [lowest]
    assert smaller.achieved == pytest.approx(0.3, abs=0.01)
    model = tiny()
    done = niwaki.apply_(model, smaller, DATA)
    assert done.achieved == pytest.approx(0.3, abs=0.01)
    assert "1 / 4" in str(smaller)
    with pytest.raises(RequestError, match="a unit must be in keep or in drop, got 2 in both"):
        edited.edit(keep={"layer.1.attention": [2]})
    with pytest.raises(RequestError, match=r"keep of layer\.0\.attention must be units 0 to 3, got 4"):
        plan.edit(keep={site: [4]})


def test_the_hand_gives_linears_their_sparsity_and_others_make_up_for_it():
    plan = niwaki.plan(tiny(), LayerAdaptive(sparsity=0.5), DATA)
    edited = plan.edit(sparsity={"layer.0": 0.1, "layer.1.up": 0.9})
    shares = {name: zeros / plan.profiles[name].size for name, zeros in edited.zeros.items()}
    assert all(abs(shares[name] - 0.1) < 0.01 for name in shares if name.startswith("layer.0."))
    assert shares["layer.1.up"] == pytest.approx(0.9, abs=0.01)
    assert edited.achieved == plan.achieved
    assert edited.at(sparsity=0.6).achieved == pytest.approx(0.6, abs=1e-4)
    with pytest.raises(RequestError, match="sparsity of must be one of"):
        plan.edit(sparsity={"layer.9.up": 0.5})
    with pytest.raises(RequestError, match=r"sparsity must be .* to .*, got"):
        plan.edit(sparsity=dict.fromkeys(["layer.0", "layer.1", "layer.2"], 0.9))


PLAIN = {"weight_score": "magnitude", "allocation": "uniform", "repair": "none"}


def test_the_hand_may_cut_what_the_request_spares_and_the_plan_says_what_is_done():
    plan = niwaki.plan(tiny(), LayerAdaptive(sparsity=0.4, keep_layers=(0,), **PLAIN), DATA)
    edited, model = plan.edit(sparsity={"layer.0": 0.9}), tiny()
    done = niwaki.apply_(model, edited, DATA)
    assert done.achieved == edited.achieved == pytest.approx(0.4, abs=1e-4)
    assert {site.name: site.total - site.kept for site in done.layers} == edited.zeros
    assert edited.zeros["layer.0.up"] == pytest.approx(0.9 * plan.profiles["layer.0.up"].size, abs=1)


def test_a_plan_of_blocks_says_whole_blocks():
    plan = niwaki.plan(tiny(), LayerAdaptive(sparsity=0.95, pattern="16x16", **PLAIN), DATA)
    for made in (plan, plan.edit(sparsity={"layer.0.key": 1.0, "layer.1.query": 1.0})):
        done = niwaki.apply_(tiny(), made, DATA)
        assert {site.name: site.total - site.kept for site in done.layers} == made.zeros
        assert 0 <= round(0.95 * done.details["weights"]) - done.details["zeros"] < 256
        assert not done.warnings


def test_zeros_that_are_there_bound_no_other_budget():
    model = tiny()
    niwaki.apply_(
        model, niwaki.plan(model, LayerAdaptive(sparsity=0.5, **PLAIN), DATA).edit(sparsity={"layer.0": 0.99})
    )
    asked = LayerAdaptive(sparsity=0.995, **PLAIN)
    assert niwaki.plan(model, LayerAdaptive(sparsity=0.7, **PLAIN), DATA).at(sparsity=0.995).zeros == (
        niwaki.plan(model, asked, DATA).zeros
    )
    spared = niwaki.plan(model, LayerAdaptive(sparsity=0.5, pattern="2:4", keep_layers=(0,), **PLAIN), DATA)
    done = niwaki.apply_(model, spared, DATA)
    kept = {site.name: site.total - site.kept for site in done.layers if site.name.startswith("layer.0.")}
    assert kept == {name: zeros for name, zeros in spared.zeros.items() if name in kept}


@pytest.mark.parametrize("asked", [{"weight_score": "magnitude", "allocation": "lamp"}, {"weight_score": "random"}])
@pytest.mark.parametrize("repair", ["none", "least-squares"])
def test_without_data_weights_go_by_what_needs_none(asked, repair):
    plan, model = niwaki.plan(tiny(), LayerAdaptive(sparsity=0.5, repair=repair, **asked), DATA), tiny()
    assert niwaki.apply_(model, plan).achieved == pytest.approx(0.5, abs=1e-4)
    expected = tiny()
    niwaki.apply_(expected, niwaki.plan(tiny(), LayerAdaptive(sparsity=0.5, repair="none", **asked), DATA), DATA)
    assert same(model, expected)


def test_without_data_nothing_is_repaired():
    plan = niwaki.plan(tiny(), Structured(flops=0.5), DATA)
    model, expected = tiny(), tiny()
    done = niwaki.apply_(model, plan)
    niwaki.prune_(expected, Structured(flops=0.5, repair="none"), DATA)
    assert same(model, expected)
    assert done.forward_passes == 0
    with pytest.raises(RequestError, match="data must be given for weight_score 'alps', got none"):
        niwaki.apply_(tiny(), niwaki.plan(tiny(), LayerAdaptive(sparsity=0.5), DATA))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_score": "fisher"}, "head_score must be 'reconstruction', which the plan was made with, got 'fisher'"),
        ({"seed": 3}, "seed must be 0, which the plan was made with, got 3"),
        ({"flops": None, "latency": 0.5, "head_unit": "group"}, "budget must be one of flops, params for a plan"),
    ],
)
def test_a_plan_does_not_answer_what_it_was_not_asked(change, message):
    plan = niwaki.plan(tiny(), Structured(flops=0.5), DATA)
    with pytest.raises(RequestError, match=message):
        plan.under(Structured(**{"flops": 0.5, **change}))


@pytest.mark.parametrize("asked", [{"only": "ffn"}, {"allocation": "uniform"}, {"head_unit": "group"}])
def test_what_a_unit_is_matters_only_where_heads_share_keys(asked):
    config = Structured(flops=0.7, **asked)
    model, expected = tiny(), tiny()
    niwaki.apply_(model, niwaki.plan(tiny(), Structured(flops=0.5), DATA).under(config), DATA)
    niwaki.prune_(expected, config, DATA)
    assert same(model, expected)
    shared = niwaki.plan(tiny("llama"), Structured(flops=0.5), batches(2, family="llama"))
    with pytest.raises(RequestError, match="head_unit must be 'both'"):
        shared.under(config)


def test_a_budget_is_met_on_the_rows_that_a_plan_is_carried_out_on(tmp_path):
    short, long = batches(2, length=5), batches(2, length=30)
    made = niwaki.plan(tiny(), Structured(flops=0.5), short)
    made.save(tmp_path / "plan")
    for plan in (made, Plan.load(tmp_path / "plan")):
        model = tiny()
        done = niwaki.apply_(model, plan, long)
        kept = count(model, mean_length(long)).block_flops / count(tiny(), mean_length(long)).block_flops
        assert done.achieved == pytest.approx(kept, abs=1e-9)
        assert 0.49 < kept <= 0.5


def test_a_budget_above_what_the_hand_leaves_is_refused():
    plan = niwaki.plan(tiny(), Structured(flops=0.5), DATA)
    without = plan.edit(drop={f"layer.{layer}.ffn": range(48) for layer in range(2)})
    with pytest.raises(RequestError, match=r"flops must be at most 0\.\d{4} with the units that are dropped by hand"):
        without.at(flops=0.99)
    most = without.span[1]
    assert without.at(flops=most).achieved == pytest.approx(most, abs=0.01)
    assert without.at(flops=1.0).achieved == pytest.approx(most, abs=1e-9)


@pytest.mark.parametrize("units", [3, "12", [1.5], [True]])
def test_units_by_hand_are_whole_numbers(units):
    plan = niwaki.plan(tiny(), Structured(flops=0.5), DATA)
    with pytest.raises(RequestError, match=r"layer\.0\.ffn: units must be a list of whole numbers, got"):
        plan.edit(keep={"layer.0.ffn": units})
    assert plan.edit(keep={"layer.0.ffn": torch.tensor([3])}).keep == {"layer.0.ffn": [3]}


def test_what_is_observed_more_than_once_is_refused():
    for config in (Structured(flops=0.5, steps=2), LayerAdaptive(sparsity=0.5, steps=2)):
        with pytest.raises(RequestError, match="steps must be 1 with a plan: each observes what the one before left"):
            niwaki.plan(tiny(), config, DATA)
    with pytest.raises(RequestError, match="drop_layers must be 0 with a plan"):
        niwaki.plan(tiny(), Structured(flops=0.6, drop_layers=1), DATA)
    with pytest.raises(RequestError, match="exactly one of flops, params must be given, got none"):
        niwaki.plan(tiny(), Structured(flops=0.5), DATA).at()
