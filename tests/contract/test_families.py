"""What every family owes: masked equals sliced, with and without LoRA; exact counts; the budget."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

import niwaki
from niwaki.anatomy import count, sites_of, supported_model_types
from niwaki.lora import merge_
from niwaki.surgery import cut_
from tiny import batches, configs, logits, tiny, with_lora


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


@pytest.mark.parametrize("lora", ["plain", "lora", "rslora"])
@pytest.mark.parametrize("family", configs())
def test_masked_equals_sliced(family, lora):
    model = tiny(family)
    if lora != "plain":
        model = with_lora(model, use_rslora=lora == "rslora")
    plan, batch = _uneven_plan(model), batches()[0]
    masked = _masked_logits(model, plan, batch)
    assert (masked - logits(model, batch)).abs().max() > 1e-3
    cut_(model, plan)
    torch.testing.assert_close(logits(model, batch), masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", configs())
def test_counts_are_exact(family):
    model = tiny(family)
    counts = count(model, 10.0)
    assert counts.block_params + counts.embedding_params + counts.head_params == sum(
        p.numel() for p in model.parameters()
    )
    # 3 layers, width 32, 4 heads of 8, 48 neurons; 10 tokens
    linears = 4 * 32 * 32 + 2 * 32 * 48
    products = 2 * 10 * 32
    assert counts.block_flops == 3 * 2 * 10 * (linears + products)


@pytest.mark.parametrize("family", configs())
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_budget_is_met_and_never_exceeded(family, kind):
    model = tiny(family)
    data = batches()
    length = sum(int(b["attention_mask"].sum()) for b in data) / sum(len(b["labels"]) for b in data)
    before = count(model, length)
    result = niwaki.prune_(model, niwaki.Structured(**{kind: 0.7}, steps=2), data)
    after = count(model, length)
    measured = after.block_flops / before.block_flops if kind == "flops" else after.block_params / before.block_params
    assert measured == pytest.approx(result.achieved, abs=1e-12)
    head = 2 * length * (4 * 32 * 8 + 2 * length * 8) / before.block_flops
    assert 0.7 - head < result.achieved <= 0.7


@pytest.mark.parametrize("family", configs())
def test_adapter_survives_pruning(family):
    model = with_lora(tiny(family))
    assert isinstance(model, PeftModel)
    niwaki.prune_(model, niwaki.Structured(flops=0.7, steps=1), batches())
    batch = batches()[0]
    merged = merge_(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), rtol=0, atol=1e-5)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model(**batch).loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_" in n]
    assert gradients
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
