"""Masked LoRA: forward and merge are one function, and no path through PEFT loses a zero."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import niwaki
from niwaki.adapters import (
    apply_mask_,
    effective_weight,
    mask_adapters_,
    mask_of,
    masks_of,
    remove_masks_,
    set_effective_weight_,
)
from niwaki.anatomy import linears_of, weight_of
from tiny import batches, logits, tiny, with_lora


def masked(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for linear in linears_of(model):
        apply_mask_(linear.module, torch.rand(linear.shape, generator=generator) < 0.4)
    return model


def zeros_hold(model, masks):
    return all(bool((effective_weight(x.module)[~masks[x.name]] == 0).all()) for x in linears_of(model))


def stored(model):
    return {linear.name: weight_of(linear.module).detach().clone() for linear in linears_of(model)}


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.2}], ids=str)
def test_merge_is_the_forward_pass_and_loses_no_zero(options, safe):
    model = masked(with_lora(tiny(), **options))
    batch, masks = batches()[0], masks_of(model)
    before = logits(model, batch)
    assert (before - logits(with_lora(tiny(), **options), batch)).abs().max() > 1e-2
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(logits(merged, batch), before, rtol=0, atol=1e-5)
    for linear in linears_of(merged):
        assert (weight_of(linear.module)[~masks[linear.name]] == 0).all()
    remove_masks_(merged)
    assert all(type(linear.module) is torch.nn.Linear for linear in linears_of(merged))
    torch.testing.assert_close(logits(merged, batch), before, rtol=0, atol=1e-5)


def test_unmerge_gives_the_stored_weight_back_bit_for_bit():
    model = with_lora(tiny())
    pretrained = stored(model)
    masked(model)
    batch = batches()[0]
    before = logits(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model, batch), before)
    assert all(torch.equal(value, stored(model)[name]) for name, value in pretrained.items())


def test_several_adapters():
    # Without a task type PEFT saves no task head beside the factors, of which only one could be active.
    model = get_peft_model(tiny(), LoraConfig(r=4, target_modules=["lin1", "q_lin"], init_lora_weights=False)).eval()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_lin", "lin2"], init_lora_weights=False))
    masked(model)
    model.add_adapter("third", LoraConfig(r=2, target_modules=["q_lin"], init_lora_weights=False))
    batch, masks = batches()[0], masks_of(model)
    alone = logits(model, batch)
    model.base_model.set_adapter(["default", "second", "third"])
    together = logits(model, batch)
    assert (together - alone).abs().max() > 1e-3
    assert zeros_hold(model, masks)
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "second", "third"])
    torch.testing.assert_close(logits(merged, batch), together, rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert (logits(model, batch) - alone).abs().max() > 1e-3


def test_the_adapter_is_saved_by_peft_and_loads_onto_the_masked_base(tmp_path):
    model = masked(with_lora(tiny()))
    batch = batches()[0]
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(masked(tiny()), str(tmp_path)).eval()
    with pytest.raises(niwaki.RequestError, match="without"):
        niwaki.merge_(copy.deepcopy(again))
    with pytest.raises(niwaki.RequestError, match="attached without"):
        copy.deepcopy(again).merge_and_unload()
    merged = niwaki.merge_(again, mask_adapters=True)
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), rtol=0, atol=1e-5)


MERGES = {
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "safe merge_and_unload": lambda model: model.merge_and_unload(safe_merge=True),
    "merge_adapter": lambda model: model.merge_adapter(),
    "safe merge_adapter": lambda model: model.merge_adapter(safe_merge=True),
    "of a layer": lambda model: linears_of(model)[0].module.merge(),
    "of a layer, safe": lambda model: linears_of(model)[0].module.merge(safe_merge=True),
    "of an adapter by name": lambda model: model.merge_adapter(["default"]),
    "niwaki": niwaki.merge_,
}


@pytest.mark.parametrize("family", ["distilbert", "gpt2"])
@pytest.mark.parametrize("merge", MERGES)
def test_no_way_of_merging_takes_an_adapter_without_the_mask(merge, family):
    model = with_lora(masked(tiny(family)))
    before = stored(model)
    with pytest.raises(niwaki.RequestError, match="must hold the mask"):
        MERGES[merge](model)
    assert all(torch.equal(value, stored(model)[name]) for name, value in before.items())
    if family == "distilbert":
        held = masked(with_lora(tiny(family)))
        if merge != "niwaki":
            MERGES[merge](held)


ASKED = {
    "structured": lambda model: niwaki.prune_(model, niwaki.Structured(flops=0.5), batches(2)),
    "layer-adaptive": lambda model: niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.8), batches(2)),
    "dynamic": lambda model: niwaki.prune_(
        model, niwaki.DynamicSparsityTraining(sparsity=0.8, interval=1, epochs=4), batches(2)
    ),
    "attach": lambda model: niwaki.DynamicSparsity(sparsity=0.8, interval=2).attach(
        model, torch.optim.AdamW(p for p in model.parameters() if p.requires_grad), 10
    ),
    "finetune": lambda model: niwaki.finetune(model, niwaki.Finetune(epochs=1), batches(2)),
    "score": lambda model: niwaki.score(model, batches(2)),
}


@pytest.mark.parametrize("asked", ASKED)
def test_an_adapter_that_fills_zeros_of_its_base_is_refused(asked):
    model = with_lora(masked(tiny()))
    before, batch = logits(model.eval(), batches()[0]), batches()[0]
    with pytest.raises(niwaki.RequestError, match=r"must hold the mask of its base.*mask_adapters_"):
        ASKED[asked](model)
    assert torch.equal(logits(model.eval(), batch), before)
    mask_adapters_(model)
    ASKED[asked](model)


def test_one_that_adds_nothing_yet_is_taken_under_the_mask():
    model = with_lora(masked(tiny()))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    ASKED["layer-adaptive"](model)
    before = logits(model.eval(), batches()[0])
    torch.testing.assert_close(logits(niwaki.merge_(model).eval(), batches()[0]), before, rtol=0, atol=1e-5)


def test_an_adapter_without_the_mask_is_taken_off_and_trained_as_ever():
    model = with_lora(masked(tiny()))
    batch = batches()[0]
    model.train()(**batch).loss.backward()
    plain = copy.deepcopy(model).unload()
    assert masks_of(plain)
    torch.testing.assert_close(logits(plain.eval(), batch), logits(masked(tiny()), batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_holds_zeros_and_the_stored_weight(dropout):
    model = masked(with_lora(tiny(), lora_dropout=dropout)).train()
    masks, before = masks_of(model), stored(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    changed = copy.deepcopy(model)
    for batch in batches():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert zeros_hold(model, masks)
    assert all(torch.equal(value, stored(model)[name]) for name, value in before.items())
    assert (logits(model.eval(), batch) - logits(changed.eval(), batch)).abs().max() > 1e-3
    merged = niwaki.merge_(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), rtol=0, atol=1e-5)


def test_dropout_is_that_of_peft_where_nothing_is_masked():
    plain = with_lora(tiny(), lora_dropout=0.3).train()
    held = copy.deepcopy(plain)
    for linear in linears_of(held):
        apply_mask_(linear.module, torch.ones(linear.shape, dtype=torch.bool))
    batch = batches()[0]
    found = []
    for model in (plain, held):
        torch.manual_seed(4)
        found.append(model(**batch).logits)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_plain_linear_holds_its_zeros_and_saves_them():
    model = masked(tiny()).train()
    masks = masks_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for batch in batches():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert zeros_hold(model, masks)
    saved = model.state_dict()
    for linear in linears_of(model):
        name = next(n for n, module in model.named_modules() if module is linear.module)
        assert (saved[f"{name}.weight"][~masks[linear.name]] == 0).all()
        assert f"{name}.bits" not in saved


def test_a_held_mask_takes_a_bit_a_weight_and_is_changed_by_setting_it():
    model = masked(tiny())
    linear = linears_of(model)[0].module
    kept = linear.mask.clone()
    assert sum(buffer.nbytes for buffer in linear.buffers()) == kept.numel() // 8
    linear.mask &= ~kept
    assert not linear.mask.any()
    linear.mask = kept
    assert torch.equal(linear.mask, kept)


def test_a_lora_attached_by_niwaki_holds_the_mask_of_its_base():
    model = masked(tiny())
    tuned, _ = niwaki.finetune(model, niwaki.Finetune(epochs=1), batches())
    assert zeros_hold(tuned, masks_of(model))
    batch = batches()[0]
    torch.testing.assert_close(
        logits(niwaki.merge_(copy.deepcopy(tuned)), batch), logits(tuned, batch), atol=1e-5, rtol=0
    )


def test_an_effective_weight_is_written_under_the_mask_only():
    model = masked(with_lora(tiny()))
    linear = linears_of(model)[3].module
    before, mask = weight_of(linear).detach().clone(), mask_of(linear)
    wanted = torch.randn(before.shape)
    set_effective_weight_(linear, wanted)
    torch.testing.assert_close(effective_weight(linear), wanted * mask)
    assert torch.equal(weight_of(linear)[~mask], before[~mask])


def test_what_cannot_hold_a_mask_is_refused():
    with pytest.raises(niwaki.RequestError, match="shape"):
        apply_mask_(torch.nn.Linear(3, 4), torch.ones(3, 4, dtype=torch.bool))
    dora = get_peft_model(tiny(), LoraConfig(target_modules=["q_lin"], use_dora=True))
    layer = dora.base_model.model.distilbert.transformer.layer[0].attention.q_lin
    with pytest.raises(niwaki.RequestError, match="variant"):
        apply_mask_(layer, torch.ones(32, 32, dtype=torch.bool))
    model = with_lora(tiny())
    model.merge_adapter()
    with pytest.raises(niwaki.RequestError, match="unmerge"):
        masked(model)


def test_masked_heads_and_neurons_can_be_cut():
    model = masked(with_lora(tiny()))
    niwaki.prune_(model, niwaki.Structured(flops=0.7, repair="none"), batches())
    masks, batch = masks_of(model), batches()[0]
    assert all(
        mask.shape == weight_of(x.module).shape for x, mask in zip(linears_of(model), masks.values(), strict=True)
    )
    torch.testing.assert_close(
        logits(niwaki.merge_(copy.deepcopy(model)), batch), logits(model, batch), atol=1e-5, rtol=0
    )
