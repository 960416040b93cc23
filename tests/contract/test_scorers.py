"""What every scorer owes: one score per unit, finite, repeatable, additive statistics, padding ignored."""

from __future__ import annotations

import pytest
import torch
from transformers import BertModel

import niwaki
from niwaki.anatomy import linears_of, sites_of
from niwaki.config import HEAD_SCORES, NEURON_SCORES
from niwaki.observe import need_of, observe
from niwaki.observe.moments import with_moments
from niwaki.observe.tokens import FLOOR
from niwaki.scoring.units import HEAD_SCORERS, NEURON_SCORERS, UNIT_NEEDS
from tiny import batches, logits, tiny, with_lora

CASES = [("attention", name) for name in HEAD_SCORERS] + [("ffn", name) for name in NEURON_SCORERS]


def _scores(model, kind, name, data, seed=0):
    need = need_of(UNIT_NEEDS, name)
    statistics = observe(model, data, need, seed=seed)
    scorer = (HEAD_SCORERS if kind == "attention" else NEURON_SCORERS)[name]
    if need.moments:
        weights = statistics.token_weights
        for linear, own in with_moments(model, statistics, data, weights, only_writing=True):
            statistics = statistics.with_moments(linear.name, own.linears[linear.name].moments)
    return {s.name: scorer(s, statistics, seed) for s in sites_of(model) if s.kind == kind}


def test_names_are_the_configured_ones():
    assert set(HEAD_SCORERS) == set(HEAD_SCORES)
    assert set(NEURON_SCORERS) == set(NEURON_SCORES)


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_one_finite_score_per_unit_and_repeatable(kind, name, family):
    model = with_lora(tiny(family))
    first, again = (_scores(model, kind, name, batches()) for _ in range(2))
    assert len(first) == 3
    for site in sites_of(model):
        if site.kind == kind:
            assert first[site.name].shape == (site.units,)
            assert torch.isfinite(first[site.name]).all()
            assert (first[site.name] >= 0).all()
            assert torch.equal(first[site.name], again[site.name])


@pytest.mark.parametrize(("kind", "name"), [c for c in CASES if c[1] not in ("reconstruction", "random")])
def test_batching_and_padding_do_not_matter(kind, name):
    model = tiny()
    whole = batches(count=1, rows=8, length=12)
    single = []
    for row in range(8):
        n = int(whole[0]["attention_mask"][row].sum())
        single.append({k: v[row : row + 1, :n] if v.dim() == 2 else v[row : row + 1] for k, v in whole[0].items()})
    for a, b in zip(
        _scores(model, kind, name, whole).values(), _scores(model, kind, name, single).values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
def test_a_row_of_padding_alone_does_not_count(family):
    model, data = tiny(family), batches(count=1)
    more = [{name: torch.cat([value, value[:1]]) for name, value in data[0].items()}]
    more[0]["attention_mask"][-1] = 0
    expected = _scores(model, "attention", "attention-variance", data)
    for name, score in _scores(model, "attention", "attention-variance", more).items():
        torch.testing.assert_close(score, expected[name])


@pytest.mark.parametrize("asked", [True, False])
def test_observing_attention_leaves_the_config_as_it_was(asked):
    model = tiny("mpnet")
    model.config.output_attentions = asked
    _scores(model, "attention", "attention-variance", batches())
    assert model.config.output_attentions is asked


def test_statistics_add():
    model, data = tiny(), batches(count=4)
    need = need_of(UNIT_NEEDS, "attention-variance", "fisher")
    together = observe(model, data, need)
    apart = observe(model, data[:1], need) + observe(model, data[1:], need)
    assert (apart.tokens, apart.rows) == (together.tokens, together.rows)
    for ours, theirs in ((apart.sites, together.sites), (apart.linears, together.linears)):
        for name, sums in theirs.items():
            for field, value in vars(sums).items():
                torch.testing.assert_close(
                    torch.as_tensor(getattr(ours[name], field)), torch.as_tensor(value), rtol=1e-4, atol=1e-5
                )


def test_whole_moments_are_given_for_one_linear_at_a_time_and_weigh_tokens_by_what_they_matter():
    model, data = tiny(), batches(count=3)
    statistics = observe(model, data, need_of(UNIT_NEEDS, "reconstruction"))
    linears = linears_of(model)
    seen = {linear.name: [] for linear in linears}
    hooks = [
        linear.module.register_forward_pre_hook(lambda _m, args, name=linear.name: seen[name].append(args[0]))
        for linear in linears
    ]
    for batch in data:
        logits(model, batch)
    for hook in hooks:
        hook.remove()
    keep = [batch["attention_mask"].bool() for batch in data]
    for linear, own in with_moments(model, statistics, data, statistics.token_weights):
        given = [name for name, sums in own.linears.items() if isinstance(sums.moments, torch.Tensor)]
        assert given == [linear.name]
        x = torch.cat([part[mask] for part, mask in zip(seen[linear.name], keep, strict=True)])
        sizes = torch.cat([batch[linear.name] for batch in statistics.token_sizes])
        weights = sizes.sqrt() / sizes.sqrt().mean() + FLOOR
        moments = own.linears[linear.name].moments
        torch.testing.assert_close(moments, ((x * weights[:, None]).T @ x).double(), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(sums.moments, torch.Tensor) for sums in statistics.linears.values())


@pytest.mark.parametrize("name", ["fisher", "taylor", "reconstruction"])
def test_a_dead_neuron_is_the_least_important(name):
    model = tiny()
    with torch.no_grad():
        model.distilbert.transformer.layer[1].ffn.lin2.weight[:, 7] = 0
    scores = _scores(model, "ffn", name, batches())["layer.1.ffn"]
    assert scores.argmin() == 7
    assert scores[7] == pytest.approx(0, abs=1e-9)


def test_attention_variance_is_zero_for_an_even_head():
    model = tiny()
    with torch.no_grad():
        query = model.distilbert.transformer.layer[0].attention.q_lin
        query.weight[8:16] = 0
        query.bias[8:16] = 0
    scores = _scores(model, "attention", "attention-variance", batches())["layer.0.attention"]
    assert scores[1] == pytest.approx(0, abs=1e-9)
    assert (scores[[0, 2, 3]] > 1e-4).all()


def test_an_even_head_is_even_within_its_window():
    """Outside a sliding window there are no keys, so a local head that spreads evenly does not vary either."""
    model = tiny("mistral")
    model.config.sliding_window = 3
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    seen = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda _m, _a, out: seen.append(out[1]))
    scores = observe(model, batches(family="mistral"), need_of(UNIT_NEEDS, "attention-variance"))
    hook.remove()
    over_keys = torch.as_tensor(scores.sites["layer.0.attention"].attention)[:, 0]
    assert (seen[0].nan_to_num(0.0) > 0).sum(-1).max() == 3  # the window is there
    torch.testing.assert_close(over_keys, torch.zeros_like(over_keys), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("family", "change"), [("gemma3_text", {"use_bidirectional_attention": True}), ("llama", {"is_causal": False})]
)
def test_a_decoder_that_looks_both_ways_is_scored_and_counted_so(family, change):
    body = tiny(family).model
    model = type(body)(type(body.config)(**{**body.config.to_dict(), **change})).eval()
    data = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches(family=family)]
    data = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in data]
    seen = []
    for layer in model.layers:
        layer.self_attn.register_forward_hook(lambda _module, _args, out: seen.append(out[1]))
    scores = observe(model, data, need_of(UNIT_NEEDS, "attention-variance"), query_heads=True)
    maps = torch.cat([each.nan_to_num(0.0) for each in seen[:: len(model.layers)]])
    assert (maps.triu(1) > 0).any()
    assert not any(site.causal for site in sites_of(model))
    visible = (maps[:, :1] > 0).float()
    even = visible / visible.sum(-1, keepdim=True)
    over_keys = ((maps - even).square() * visible).sum((0, 2, 3))
    found = torch.as_tensor(scores.sites["layer.0.attention"].attention)[:, 0]
    torch.testing.assert_close(found, over_keys.to(found), rtol=1e-4, atol=1e-6)


def test_an_encoder_that_looks_back_only_is_counted_so():
    assert not any(site.causal for site in sites_of(tiny("bert")))
    config = tiny("bert").config
    decoder = BertModel(type(config)(**{**config.to_dict(), "is_decoder": True}))
    assert all(site.causal for site in sites_of(decoder))


@pytest.mark.parametrize("name", ["activation", "activation-variance"])
def test_layers_that_run_twice_are_averaged_over_both(name):
    model, data = tiny("mobilellm"), batches(family="mobilellm")
    seen = {site.name: [] for site in sites_of(model) if site.kind == "ffn"}
    keep = data[0]["attention_mask"].bool()
    hooks = [
        site.output.register_forward_pre_hook(lambda _m, args, name=site.name: seen[name].append(args[0][keep]))
        for site in sites_of(model)
        if site.kind == "ffn"
    ]
    logits(model, data[0])
    for hook in hooks:
        hook.remove()
    found = _scores(model, "ffn", name, data)
    for site in sites_of(model):
        if site.kind == "ffn":
            x, sizes = torch.cat(seen[site.name]).double(), site.output.weight.double().norm(dim=0)
            assert len(seen[site.name]) == 2
            by_hand = x.square().mean(0).sqrt() * sizes if name == "activation" else x.var(0, correction=0) * sizes**2
            torch.testing.assert_close(found[site.name].double(), by_hand, rtol=1e-4, atol=1e-8)


def test_twins_are_seen_as_redundant_by_reconstruction_only():
    model = tiny()
    layer = model.distilbert.transformer.layer[0].ffn
    with torch.no_grad():
        layer.lin1.weight[5], layer.lin1.bias[5] = layer.lin1.weight[4].clone(), layer.lin1.bias[4].clone()
    found = _scores(model, "ffn", "reconstruction", batches(count=3, rows=24))["layer.0.ffn"]
    assert {4, 5} & set(found.argsort()[:2].tolist())


def test_scores_without_labels():
    data = [{k: v for k, v in b.items() if k != "labels"} for b in batches()]
    assert len(niwaki.score(tiny(), data)) == 6
    with pytest.raises(niwaki.RequestError, match="labels"):
        niwaki.score(tiny(), data, niwaki.Structured(flops=1.0, head_score="fisher"))


def test_a_weight_that_is_not_finite_is_named():
    model = tiny()
    with torch.no_grad():
        model.distilbert.transformer.layer[1].ffn.lin1.weight[0, 0] = torch.nan
    with pytest.raises(niwaki.WorkError, match=r"layer\.1\.up"):
        niwaki.score(model, batches())
