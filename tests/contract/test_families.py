"""What every family owes: masked equals sliced, with and without LoRA, empty sites too; exact counts; the budget."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

import niwaki
from niwaki.adapters import bias_of, merge_
from niwaki.allocation import ALLOCATORS, Bounds
from niwaki.anatomy import count, empty_linears, family_of, sites_of, supported_model_types, unit_flops
from niwaki.checkpoint import shapes_of, write_adapter
from niwaki.config import HEAD_SCORES, NEURON_SCORES
from niwaki.data import mean_length
from niwaki.observe import need_of, observe
from niwaki.repair.refit import refit_
from niwaki.scoring.units import UNIT_NEEDS, score_units
from niwaki.surgery import cut_
from tiny import ROWS, auto_class, batches, configs, decoders, logits, tiny, transposed, with_lora


def test_every_family_row_is_tested():
    assert set(configs()) == set(supported_model_types())


def _uneven_plan(model):
    generator = torch.Generator().manual_seed(3)
    return {
        site.name: torch.randperm(site.units, generator=generator)[: site.units - (not site.fixed) * (1 + site.layer)]
        .sort()
        .values
        for site in sites_of(model)
    }


def _masked_logits(model, plan, batch):
    hooks = []
    for site in sites_of(model):
        mask = torch.zeros(site.units, site.width)
        mask[plan[site.name]] = 1
        hooks.append(site.output.register_forward_pre_hook(lambda _m, args, mask=mask: (args[0] * mask.flatten(),)))
    found = logits(model, batch)
    for hook in hooks:
        hook.remove()
    return found


def _emptying_plan(model):
    """Layer 1 loses everything it can, layer 2 its heads, and layer 0 is uneven."""
    plan = _uneven_plan(model)
    for site in sites_of(model):
        if not site.fixed and site.name in ("layer.1.attention", "layer.1.ffn", "layer.2.attention"):
            plan[site.name] = torch.arange(0)
    return plan


def _adapter(model, seed, **options):
    """One more LoRA adapter, its factors not zero, for the linears whose names end in `target_modules`."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, fan_in_fan_out=transposed(model), **options)
    if isinstance(model, PeftModel):
        model.add_adapter(f"number {seed}", config)
        return model
    return get_peft_model(model, config).eval()


def _linears(model):
    wanted = [{id(linear) for site in sites_of(model) for linear in linears(site)} for linears in _PARTS]
    return [[name for name, module in model.named_modules() if id(module) in ids] for ids in wanted]


_PARTS = (
    lambda site: (*site.inputs, site.output),
    lambda site: (site.inputs[0], site.inputs[-1]) if site.kind == "attention" else (),
)


def _model(family, lora):
    model = tiny(family)
    everything, query_and_value = _linears(model)
    match lora:
        case "lora" | "rslora":
            return with_lora(model, use_rslora=lora == "rslora")
        case "two adapters":
            model = _adapter(_adapter(model, 1, target_modules=everything), 2, target_modules=query_and_value)
            model.base_model.set_adapter(["default", "number 2"])
            assert model.active_adapters == ["default", "number 2"]
        case "query and value":
            model = _adapter(model, 1, target_modules=query_and_value)
    return model.eval()


@pytest.mark.parametrize("plan_of", [_uneven_plan, _emptying_plan])
@pytest.mark.parametrize(
    ("family", "lora"),
    [
        *itertools.product(configs(), ["plain", "lora"]),
        *itertools.product(ROWS, ["rslora", "two adapters", "query and value"]),
    ],
)
def test_masked_equals_sliced(family, lora, plan_of):
    model = _model(family, lora)
    plan, batch = plan_of(model), batches(rows=6, family=family)[0]
    masked = _masked_logits(model, plan, batch)
    assert (masked - logits(model, batch)).abs().max() > 1e-3
    cut_(model, plan)
    torch.testing.assert_close(logits(model, batch), masked, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(merge_(model), batch), masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", ["plain", "lora"])
@pytest.mark.parametrize("family", ROWS)
def test_a_model_with_empty_sites_goes_on(family, lora):
    model = _model(family, lora)
    dense = copy.deepcopy(model)
    plan = _emptying_plan(model)
    cut_(model, plan)
    counts = count(merge_(copy.deepcopy(model)), 10.0)
    assert counts.block_params == count(model, 10.0).block_params
    assert counts.block_params + counts.embedding_params + counts.head_params == sum(
        p.numel() for p in merge_(copy.deepcopy(model)).parameters()
    )
    data, need = batches(family=family), need_of(UNIT_NEEDS, *HEAD_SCORES, *NEURON_SCORES)
    statistics = observe(model, data, need)
    sites = sites_of(model)
    for head_score, neuron_score in zip(HEAD_SCORES, NEURON_SCORES, strict=True):
        asked = niwaki.Structured(flops=0.5, head_score=head_score, neuron_score=neuron_score)
        scores = score_units(model, sites, statistics, data, asked)
        assert all(len(scores[site.name]) == site.units for site in sites)
    before = _distance(model, dense, family)
    for method in ("bias", "least-squares") if bias_of(sites[0].output) is not None else ("least-squares",):
        refit_(model, dense, batches(rows=24, family=family), plan, method)
        before, last = _distance(model, dense, family), before
        assert before < last
    bounds = {site.name: Bounds.linear(1.0, site.units, site.units if site.fixed else 0) for site in sites}
    cut_(model, ALLOCATORS["global"](scores, bounds, sum(site.units for site in sites) - 30.0))
    assert sum(site.units for site in sites_of(model)) == sum(site.units for site in sites) - 30
    if isinstance(model, PeftModel):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    model.train()(**batches(family=family)[0]).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "config",
    [
        niwaki.Structured(flops=0.6),
        niwaki.LayerAdaptive(sparsity=0.5, reconstruct="norms"),
        niwaki.LayerAdaptive(sparsity=0.5, fast=True, weight_score="sparsegpt", allocation="uniform"),
        niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"),
    ],
    ids=lambda config: f"{config.repair}-{getattr(config, 'weight_score', 'units')}",
)
@pytest.mark.parametrize("gone", ["layer.1.ffn", "layer.2.attention"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_lost_a_site_is_pruned_further(family, gone, config, tmp_path):
    model, data = tiny(family), batches(family=family, count=2)
    cut_(model, {site.name: torch.arange(0 if site.name == gone else site.units) for site in sites_of(model)})
    result = niwaki.prune_(model, config, data)
    assert result.achieved == pytest.approx(result.requested, abs=0.06)
    assert next(site.units for site in sites_of(model) if site.name == gone) == 0
    niwaki.save(model, tmp_path / "a")
    assert torch.equal(logits(niwaki.load(tmp_path / "a"), data[0]), logits(model, data[0]))


def _distance(model, dense, family):
    data = batches(count=1, rows=24, seed=9, family=family)
    return sum(float((logits(model, batch) - logits(dense, batch)).square().sum()) for batch in data)


@pytest.mark.parametrize("family", ROWS)
def test_a_model_with_empty_sites_is_saved_and_loaded_bit_for_bit(family, tmp_path):
    model = tiny(family)
    cut_(model, _emptying_plan(model))
    niwaki.save(model, tmp_path / "a")
    stock = auto_class(family).from_pretrained(tmp_path / "a").eval()
    stock.save_pretrained(tmp_path / "b")
    stock(**batches(family=family)[0]).loss.backward()
    assert all(p.grad is not None for p in stock.parameters() if p.requires_grad)
    for other in (niwaki.load(tmp_path / "a"), stock, niwaki.load(tmp_path / "b")):
        assert shapes_of(other) == shapes_of(model)
        assert torch.equal(logits(other, batches(family=family)[0]), logits(model, batches(family=family)[0]))


@pytest.mark.parametrize("family", ROWS)
def test_an_adapter_on_empty_sites_is_saved_and_loaded_bit_for_bit(family, tmp_path):
    model = with_lora(tiny(family))
    cut_(model, _emptying_plan(model))
    write_adapter(model, tmp_path, tmp_path)
    base = auto_class(family).from_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(logits(loaded, batches(family=family)[0]), logits(model, batches(family=family)[0]))
    assert torch.equal(
        logits(niwaki.load(tmp_path / "adapter"), batches(family=family)[0]), logits(model, batches(family=family)[0])
    )
    loaded(**batches(family=family)[0]).loss.backward()
    assert all(p.grad is not None for n, p in loaded.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("family", ["distilbert", "bert"])
def test_new_adapters_on_a_model_with_empty_sites(family, tmp_path):
    model = tiny(family)
    everything, _ = _linears(model)
    cut_(model, _emptying_plan(model))
    niwaki.save(model, tmp_path / "base")
    narrow = copy.deepcopy(model)
    # Left alone, PEFT puts factors of width zero there, of which it and torch warn; they work all the same.
    with pytest.warns(UserWarning, match="zero-element"):
        wide = _adapter(model, 1, target_modules=everything)
    with pytest.warns(UserWarning, match="zero-sized"):
        wide.save_pretrained(str(tmp_path / "wide"))
    loaded = niwaki.load(tmp_path / "wide", base_model=str(tmp_path / "base"))
    narrow = _adapter(narrow, 1, target_modules=everything, exclude_modules=empty_linears(narrow))
    assert len(empty_linears(narrow)) == 4 + 2 + 4
    narrow.save_pretrained(str(tmp_path / "narrow"))
    again = niwaki.load(tmp_path / "narrow", base_model=str(tmp_path / "base"))
    for peft, other in ((wide, loaded), (narrow, again)):
        assert torch.equal(logits(other, batches()[0]), logits(peft, batches()[0]))
        cut_(other, {site.name: torch.arange(max(0, site.units - 1)) for site in sites_of(other)})
        expected = logits(other, batches()[0])
        torch.testing.assert_close(logits(merge_(other), batches()[0]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("excluded", [None, ["pre_classifier"], ".*pre_classifier"])
def test_what_an_adapter_excluded_stays_excluded(excluded):
    everything, _ = _linears(tiny())
    model = _adapter(tiny(), 1, target_modules=everything, exclude_modules=excluded, lora_bias=True)
    plan, batch = _emptying_plan(model), batches()[0]
    masked = _masked_logits(model, plan, batch)
    cut_(model, plan)
    torch.testing.assert_close(logits(model, batch), masked, rtol=0, atol=1e-5)
    names = [*empty_linears(model), "distilbert.pre_classifier"]
    config = model.peft_config["default"]
    for name in names[: None if excluded else -1]:
        assert isinstance(check_target_module_exists(config, name), _ExcludedModule)
    assert check_target_module_exists(config, "distilbert.transformer.layer.0.attention.q_lin") is True


def test_a_pooler_is_counted_with_the_head_and_not_with_the_embeddings():
    model = tiny("bert")
    assert count(model, 10.0).embedding_params == sum(p.numel() for p in model.bert.embeddings.parameters())
    head = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    assert count(model, 10.0).head_params == sum(p.numel() for p in head)


@pytest.mark.parametrize("family", configs())
def test_counts_are_exact(family):
    model = tiny(family)
    counts = count(model, 10.0)
    assert counts.block_params + counts.embedding_params + counts.head_params == sum(
        p.numel() for p in model.parameters()
    )
    # 3 layers (each run twice in MobileLLM-LS), width 32, 48 neurons, 10 tokens
    config = model.config
    heads = getattr(config, family_of(model).heads_key)
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or 32 // heads
    gated = family in ("modernbert", *decoders()) and family not in ("opt", "gpt_neox", "gpt2")
    linears = (2 * heads + 2 * groups) * width * 32 + (3 if gated else 2) * 32 * 48
    seen = (10 + 1) / 2 if family in decoders() else 10
    runs = 2 if family == "mobilellm" else 1
    assert counts.block_flops == runs * 3 * 2 * 10 * (linears + 2 * seen * heads * width)


@pytest.mark.parametrize("family", ROWS)
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_budget_is_met_and_never_exceeded(family, kind):
    model = tiny(family)
    data = batches(family=family)
    length = mean_length(data)
    before = count(model, length)
    result = niwaki.prune_(model, niwaki.Structured(**{kind: 0.7}, steps=2, repair="none"), data)
    after = count(model, length)
    measured = after.block_flops / before.block_flops if kind == "flops" else after.block_params / before.block_params
    assert measured == pytest.approx(result.achieved, abs=1e-12)
    head = max(unit_flops(site, length) for site in sites_of(tiny(family))) / before.block_flops
    assert 0.7 - head < result.achieved <= 0.7


@pytest.mark.parametrize("family", ROWS)
def test_adapter_survives_pruning(family):
    model = with_lora(tiny(family))
    assert isinstance(model, PeftModel)
    niwaki.prune_(model, niwaki.Structured(flops=0.7, steps=1), batches(family=family))
    batch = batches(family=family)[0]
    merged = merge_(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), rtol=0, atol=1e-5)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model(**batch).loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_" in n]
    assert gradients
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
