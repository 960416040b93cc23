"""What every layer score, weight score, allocation and pattern owes to a whole run: exact zeros, finite, repeatable."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch

import niwaki
from niwaki.adapters import effective_weight, masks_of, remove_masks_
from niwaki.anatomy import linears_of, weight_of
from niwaki.config.layer_adaptive import LAYER_SCORES, SPARSITY_ALLOCATIONS, WEIGHT_SCORES
from niwaki.methods.importance_strength import STRENGTHS
from niwaki.observe import Need, observe
from niwaki.observe.moments import input_moments
from niwaki.scoring.layers import LAYER_SCORERS
from niwaki.scoring.sensitivity import sensitivity
from niwaki.scoring.weights import WEIGHT_SCORERS
from tiny import ROWS, batches, decoders, logits, tiny, with_lora

EVERYTHING = Need(output_gradients=True, task_gradients=True, weight_gradients=True)
TOTAL = 3 * (4 * 32 * 32 + 2 * 32 * 48)


def zeros_of(model):
    plain = niwaki.merge_(copy.deepcopy(model))
    remove_masks_(plain)
    return sum(int((weight_of(linear.module) == 0).sum()) for linear in linears_of(plain))


def test_names_are_the_configured_ones():
    assert {*LAYER_SCORERS, "sensitivity"} == set(LAYER_SCORES)
    assert set(WEIGHT_SCORERS) == set(WEIGHT_SCORES)


@pytest.mark.parametrize("name", WEIGHT_SCORERS)
def test_weight_scores_are_finite_repeatable_and_of_the_effective_weight(name):
    model = with_lora(tiny())
    statistics = observe(model, batches(), EVERYTHING)
    for linear, moments in input_moments(model, batches()):
        statistics = statistics.with_moments(linear.name, moments)
    merged = niwaki.merge_(copy.deepcopy(model))
    for linear, plain in zip(linears_of(model), linears_of(merged), strict=True):
        found = WEIGHT_SCORERS[name](linear, statistics, 0)
        assert found.shape == linear.shape
        assert torch.isfinite(found).all()
        assert (found >= 0).all()
        assert torch.equal(found, WEIGHT_SCORERS[name](linear, statistics, 0))
        torch.testing.assert_close(found, WEIGHT_SCORERS[name](plain, statistics, 0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LAYER_SCORERS)
def test_layer_scores_are_finite_and_padding_does_not_matter(name):
    model = with_lora(tiny())
    whole = batches(count=1, rows=8)
    single = []
    for row in range(8):
        n = int(whole[0]["attention_mask"][row].sum())
        single.append({k: v[row : row + 1, :n] if v.dim() == 2 else v[row : row + 1] for k, v in whole[0].items()})
    need = Need(task_gradients=True, output_gradients=name == "fisher")
    together, apart = (observe(model, data, need) for data in (whole, single))
    found, again = (LAYER_SCORERS[name](linears_of(model), sums, 0) for sums in (together, apart))
    assert list(found) == [linear.name for linear in linears_of(model)]
    assert all(0 <= score < float("inf") for score in found.values())
    if name != "fisher":  # its labels are drawn batch by batch
        assert again == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("granularity", ["block", "linear"])
@pytest.mark.parametrize(
    ("layer_score", "weight_score"), list(zip(LAYER_SCORES, itertools.cycle(WEIGHT_SCORES), strict=False))
)
def test_scores_without_pruning(layer_score, weight_score, granularity):
    model = with_lora(tiny())
    before = logits(model, batches()[0])
    config = niwaki.LayerAdaptive(
        sparsity=0.0,
        allocation="inverse-importance",
        layer_score=layer_score,
        weight_score=weight_score,
        granularity=granularity,
    )
    found = niwaki.score(model, batches(), config)
    assert list(found) == list(found.importance) == [linear.name for linear in linears_of(model)]
    assert [len(scores) for scores in found.values()] == [linear.shape[0] for linear in linears_of(model)]
    assert all(0 <= score < float("inf") for scores in found.values() for score in scores)
    of_blocks = granularity == "block" or layer_score in ("block-influence", "outliers")
    assert of_blocks == (found.importance["layer.0.query"] == found.importance["layer.0.down"])
    assert torch.equal(logits(model, batches()[0]), before)


def test_sensitivity_is_measured_and_leaves_the_model_alone():
    model = with_lora(tiny())
    with torch.no_grad():
        model.base_model.model.distilbert.transformer.layer[1].ffn.lin2.weight.mul_(1e-3)
        for name, parameter in model.named_parameters():
            if "layer.1.ffn.lin2.lora_B" in name:
                parameter.zero_()
    before = logits(model, batches()[0])
    found = sensitivity(model, linears_of(model), batches(), 0)
    assert set(sorted(found, key=lambda name: found[name])[:2]) == {"layer.1.up", "layer.1.down"}
    assert all(0 <= value < float("inf") for value in found.values())
    assert found == sensitivity(model, linears_of(model), batches(), 0)
    assert torch.equal(logits(model, batches()[0]), before)


def test_statistics_add():
    model, data = tiny(), batches(count=3)
    need = Need(weight_gradients=True)
    together = observe(model, data, need)
    apart = observe(model, data[:1], need) + observe(model, data[1:], need)
    assert (apart.tokens, apart.rows) == (together.tokens, together.rows)
    for name, sums in together.linears.items():
        for field in ("input_squares", "weight_gradient", "gradient_size", "activation_size", "influence"):
            a, b = (torch.as_tensor(getattr(side, field)) for side in (sums, apart.linears[name]))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_weight_gradient_is_that_of_autograd():
    model, data = tiny(), batches(count=1)
    found = observe(model, data, Need(weight_gradients=True))
    (model(**data[0]).loss * len(data[0]["labels"])).backward()
    for linear in linears_of(model):
        torch.testing.assert_close(
            found.linears[linear.name].weight_gradient, weight_of(linear.module).grad, rtol=1e-3, atol=1e-5
        )


RUNS = [(allocation, "alps", "least-squares") for allocation in SPARSITY_ALLOCATIONS]
RUNS += [("global", score, repair) for score in WEIGHT_SCORES for repair in ("none", "least-squares")]


@pytest.mark.parametrize(("allocation", "score", "repair"), dict.fromkeys(RUNS))
def test_the_zeros_asked_are_the_zeros_delivered(allocation, score, repair):
    model = with_lora(tiny())
    config = niwaki.LayerAdaptive(sparsity=0.613, allocation=allocation, weight_score=score, repair=repair)
    result = niwaki.prune_(model, config, batches())
    wanted = round(0.613 * TOTAL)
    assert result.details["zeros"] == wanted
    assert result.achieved == pytest.approx(wanted / TOTAL, abs=1e-12)
    assert sum(layer.total - layer.kept for layer in result.layers) == wanted
    assert zeros_of(model) == wanted


@pytest.mark.parametrize("layer_score", LAYER_SCORES)
@pytest.mark.parametrize("granularity", ["block", "linear"])
def test_every_layer_score_allocates(layer_score, granularity):
    model = tiny()
    config = niwaki.LayerAdaptive(
        sparsity=0.5, layer_score=layer_score, granularity=granularity, allocation="inverse-importance",
        min_sparsity=0.2, max_sparsity=0.9,
    )  # fmt: skip
    result = niwaki.prune_(model, config, batches())
    assert zeros_of(model) == TOTAL // 2
    assert all(0.19 < layer.ratio < 0.91 for layer in result.layers)
    if granularity == "block":
        assert len({layer.importance for layer in result.layers}) <= 3


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_the_seed_s_rule_is_drawn_towards_uniform(strength):
    ratios = {}
    for given in (strength, 1.0):
        config = niwaki.LayerAdaptive(
            sparsity=0.5, layer_score="random", allocation="inverse-importance", importance_strength=given,
            weight_score="magnitude", repair="none",
        )  # fmt: skip
        result = niwaki.prune_(tiny(), config, batches())
        assert result.details["zeros"] == TOTAL // 2
        ratios[given] = [layer.ratio for layer in result.layers]
    for drawn, formula in zip(ratios[strength], ratios[1.0], strict=True):
        assert drawn == pytest.approx(0.5 + strength * (formula - 0.5), abs=2 / 1024)


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt"])
def test_the_strength_that_diverges_least_is_found_and_told(score):
    config = niwaki.LayerAdaptive(
        sparsity=0.6, layer_score="activation-magnitude", allocation="inverse-importance", weight_score=score,
        importance_strength="auto", repair="none",
    )  # fmt: skip
    data, found = batches(), {}
    for strength in ("auto", *STRENGTHS):
        model = tiny()
        result = niwaki.prune_(model, dataclasses.replace(config, importance_strength=strength), data)
        assert result.details["zeros"] == round(0.6 * TOTAL)
        p, q = (torch.cat([logits(m, batch) for batch in data]).log_softmax(-1) for m in (tiny(), model))
        found[strength] = float((p.exp() * (p - q)).sum(-1).mean()), [layer.kept for layer in result.layers]
        if strength == "auto":
            told = result.details["importance_strength"]
            assert result.forward_passes == pytest.approx(1 + 6 + 2.5 * (score == "sparsegpt"))
    assert found["auto"][1] == found[told][1]
    if score != "sparsegpt":
        assert found["auto"][0] <= min(found[strength][0] for strength in STRENGTHS) + 1e-6


@pytest.mark.parametrize("family", ROWS)
def test_every_family(family):
    model, data = tiny(family), batches(rows=72, family=family)
    total = sum(linear.size for linear in linears_of(model))
    assert total == TOTAL or family in decoders() or family == "modernbert"
    dense = copy.deepcopy(model)
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.3), data)
    assert zeros_of(model) == round(0.3 * total)
    bare = copy.deepcopy(dense)
    config = niwaki.LayerAdaptive(sparsity=0.3, weight_score="random", allocation="uniform", repair="none")
    niwaki.prune_(bare, config, data)
    batch = batches(seed=5, family=family)[0]
    before = logits(dense, batch)
    assert (logits(model, batch) - before).norm() < (logits(bare, batch) - before).norm()


@pytest.mark.parametrize("score", ["magnitude", "sparsegpt", "alps"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("4x1", 0.5), ("2x8", 0.6)])
def test_patterns(pattern, sparsity, score):
    model = with_lora(tiny())
    config = niwaki.LayerAdaptive(sparsity=sparsity, pattern=pattern, weight_score=score, allocation="uniform")
    result = niwaki.prune_(model, config, batches())
    unit = 1 if ":" in pattern else int(pattern[0]) * int(pattern[2])
    assert 0 <= round(sparsity * TOTAL) - zeros_of(model) < unit
    assert result.details["zeros"] == zeros_of(model)
    for linear in linears_of(model):
        zero = effective_weight(linear.module) == 0
        if ":" in pattern:
            assert (zero.reshape(-1, 4).sum(1) == 4 - int(pattern[0])).all()
        else:
            r, c = int(pattern[0]), int(pattern[2])
            blocks = zero.reshape(zero.shape[0] // r, r, zero.shape[1] // c, c).sum((1, 3))
            assert ((blocks == 0) | (blocks == r * c)).all()


@pytest.mark.parametrize("allocation", SPARSITY_ALLOCATIONS)
def test_blocks_go_with_every_allocation(allocation):
    model = with_lora(tiny())
    config = niwaki.LayerAdaptive(sparsity=0.6, pattern="4x1", allocation=allocation)
    result = niwaki.prune_(model, config, batches())
    assert 0 <= round(0.6 * TOTAL) - result.details["zeros"] < 4
    for linear in linears_of(model):
        zeros = (effective_weight(linear.module) == 0).reshape(-1, 4, linear.shape[1]).sum(1)
        assert ((zeros == 0) | (zeros == 4)).all()


@pytest.mark.parametrize("score", ["magnitude", "sparsegpt", "alps"])
def test_steps_keep_zeros_zero(score):
    model = with_lora(tiny())
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.3, weight_score=score), batches())
    first = masks_of(model)
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.7, weight_score=score, steps=3), batches())
    assert zeros_of(model) == round(0.7 * TOTAL)
    assert all(not bool((mask & ~first[name]).any()) for name, mask in masks_of(model).items())


@pytest.mark.parametrize(("family", "lora"), [("distilbert", True), ("llama", False), ("mobilellm", False)])
def test_a_layer_that_is_looked_at_once_is_refitted_too(family, lora):
    dense, data = tiny(family), batches(count=4, rows=24, family=family)
    dense = with_lora(dense) if lora else dense
    distances, passes = {}, {}
    solved = {"weight_score": "sparsegpt", "allocation": "uniform"}
    ways = {"fast": {"fast": True, **solved}, "slow": solved, "bare": {"repair": "none", **solved}}
    for name, options in ways.items():
        model = copy.deepcopy(dense)
        result = niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.6, **options), data)
        assert result.achieved == pytest.approx(0.6, abs=1e-3)
        distances[name] = sum(float((logits(model, b) - logits(dense, b)).norm()) for b in data)
        passes[name] = result.forward_passes
    assert distances["slow"] < distances["fast"] < distances["bare"]
    assert (passes["fast"], passes["slow"]) == (4.0, 6.0)


def test_the_lowest_layer_is_the_same_but_for_what_follows_in_it():
    """At once, the projections that see the layer's own input see what they would see one after the other."""
    models = [tiny(), tiny()]
    for model, fast in zip(models, (False, True), strict=True):
        config = niwaki.LayerAdaptive(sparsity=0.5, fast=fast, allocation="uniform")
        niwaki.prune_(model, config, batches(count=4))
    first, second = (model.distilbert.transformer.layer[0] for model in models)
    assert torch.equal(first.attention.q_lin.weight, second.attention.q_lin.weight)
    assert not torch.equal(first.ffn.lin1.weight, second.ffn.lin1.weight)


def test_recovery_trains_under_the_mask():
    dense = tiny()
    distances = []
    for epochs in (0, 4):
        model = copy.deepcopy(dense)
        config = niwaki.LayerAdaptive(sparsity=0.9, weight_score="magnitude", repair="none", recover_epochs=epochs)
        niwaki.prune_(model, config, batches(rows=24))
        assert zeros_of(model) == round(0.9 * TOTAL)
        batch = batches(rows=24)[0]
        distances.append(float((logits(model, batch) - logits(dense, batch)).norm()))
    assert distances[1] < distances[0]


def test_same_seed_same_bytes():
    models = [tiny() for _ in range(2)]
    for model in models:
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5), batches())
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_zeroed_changes_nothing():
    dense = tiny()
    model = copy.deepcopy(dense)
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.0), batches())
    torch.testing.assert_close(logits(model, batches()[0]), logits(dense, batches()[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity.*\[0, 1\).*got 1"),
        ({"sparsity": -0.1}, r"sparsity.*got -0\.1"),
        ({"sparsity": float("nan")}, r"sparsity.*nan"),
        ({"sparsity": 0.5, "weight_score": "wandas"}, "did you mean 'wanda'"),
        ({"sparsity": 0.6, "pattern": "2:4", "allocation": "uniform"}, r"sparsity must be 0\.5 for pattern 2:4"),
        ({"sparsity": 0.5, "pattern": "2:4", "allocation": "search"}, "allocation must be uniform"),
        ({"sparsity": 0.5, "min_sparsity": 0.8, "max_sparsity": 0.6}, "in order"),
        ({"sparsity": 0.5, "layer_score": "fisher"}, "layer_score must not be given with allocation search"),
        ({"sparsity": 0.5, "allocation": "uniform", "layer_score": "random"}, "layer_score.*allocation uniform"),
        (
            {"sparsity": 0.5, "weight_score": "wanda", "repair": "none", "fast": True},
            "fast must not be given with weight_score wanda and repair none",
        ),
        ({"sparsity": 0.5, "granularity": "block"}, "granularity must not be given with allocation search"),
        ({"sparsity": 0.5, "allocation": "owl", "granularity": "block"}, "granularity.*allocation owl"),
        ({"sparsity": 0.5, "allocation": "owl", "importance_power": 2.0}, "importance_power.*allocation owl"),
        ({"sparsity": 0.5, "allocation": "owl", "importance_strength": 0.5}, "importance_strength.*allocation owl"),
        (
            {"sparsity": 0.5, "allocation": "inverse-importance", "importance_strength": 1.5},
            r"importance_strength must be 0 to 1 or auto, got 1\.5",
        ),
        (
            {"sparsity": 0.5, "allocation": "inverse-importance", "importance_strength": "some"},
            "importance_strength must be 0 to 1 or auto, got some",
        ),
        ({"sparsity": 0.5, "pattern": "2:4", "max_sparsity": 0.9}, "max_sparsity must not be given with pattern 2:4"),
    ],
)
def test_wrong_requests(options, words):
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.LayerAdaptive(**options)


def test_the_allocation_that_is_best_follows_from_the_pattern():
    asked = niwaki.LayerAdaptive(sparsity=0.5)
    for pattern, rule in (("unstructured", "search"), ("2:4", "uniform"), ("4x1", "search")):
        config = dataclasses.replace(asked, pattern=pattern)
        assert config.rule == config.resolved().allocation == rule
        assert config.resolved().resolved() == config.resolved()


def test_bounds_and_patterns_are_checked_before_any_work():
    with pytest.raises(niwaki.RequestError, match=r"sparsity must be 0 to 0\.4003 .*got 0\.5"):
        niwaki.prune_(tiny(), niwaki.LayerAdaptive(sparsity=0.5, max_sparsity=0.4), batches())
    config = niwaki.LayerAdaptive(sparsity=0.5, pattern="3x1", allocation="uniform")
    with pytest.raises(niwaki.RequestError, match=r"layer\.0\.query"):
        niwaki.prune_(tiny(), config, batches())


def test_a_weight_that_is_not_finite_is_named():
    model = tiny()
    with torch.no_grad():
        model.distilbert.transformer.layer[1].ffn.lin1.weight[0, 0] = torch.nan
    with pytest.raises(niwaki.WorkError, match=r"layer\.1\.up"):
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5), batches())
