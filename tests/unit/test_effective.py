"""Whatever an adapter adds to a linear is counted once: in repair, bias correction, merge and save. Large values."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import niwaki
from niwaki.adapters import bias_of, effective_bias, effective_weight, set_effective_bias_
from niwaki.anatomy import linears_of, sites_of, unwrap, weight_of
from niwaki.checkpoint import write_adapter
from niwaki.surgery import cut_
from tiny import batches, logits, tiny, transposed, with_lora

PATTERNS = {"rank_pattern": {"lin1": 2, "0.attention.q_lin": 6}, "alpha_pattern": {"lin1": 16, "v_lin": 1}}
OPTIONS = {
    "plain": {},
    "lora_bias": {"lora_bias": True},
    "lora_bias_rslora": {"lora_bias": True, "use_rslora": True},
    "bias_all": {"bias": "all"},
    "bias_lora_only": {"bias": "lora_only"},
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "dropout": {"lora_dropout": 0.3, "lora_bias": True},
}
STAGES = {
    "least-squares": niwaki.Structured(flops=0.7, head_score="random", neuron_score="random"),
    "bias": niwaki.Structured(flops=0.7, head_score="random", neuron_score="random", repair="bias"),
    "layer-adaptive": niwaki.LayerAdaptive(sparsity=0.5, allocation="uniform"),
}


DATA = batches(count=1)


@pytest.mark.parametrize("patterns", [{"lin1": 8, "lin2": 8}, {".*": 2}])
def test_patterns_of_ranks_that_nothing_is_left_of_load(patterns, tmp_path):
    """The sites with the largest rank are gone, or a pattern goes before the rank of all others."""
    model = lora(rank_pattern=patterns)
    if "lin1" in patterns:
        cut_(model, {s.name: torch.arange(0 if s.kind == "ffn" else s.units) for s in sites_of(model)})
    write_adapter(model, tmp_path, tmp_path)
    assert_same(model, niwaki.load(tmp_path / "adapter").eval(), DATA[0])


def lora(family="distilbert", **options):
    """LoRA on all linears of the sites, all that it trains (biases too) far from zero."""
    model = tiny(family)
    wanted = {id(linear) for site in sites_of(model) for linear in (*site.inputs, site.output)}
    names = [name for name, module in model.named_modules() if id(module) in wanted]
    task = "SEQ_CLS" if family == "distilbert" else "CAUSAL_LM"
    config = {"task_type": task, "r": 4, "lora_alpha": 8, "target_modules": names, "fan_in_fan_out": transposed(model)}
    return grown(get_peft_model(model, LoraConfig(**config, **options)).eval())


def grown(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or (parameter.requires_grad and name.endswith("bias") and "norm" not in name):
                parameter.normal_(0, 0.2 if name.endswith("weight") else 2.0, generator=generator)
    return model


def assert_same(model, other, batch):
    torch.testing.assert_close(logits(other, batch), logits(model, batch), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_lora_counts_once(option, tmp_path):
    model, batch = lora(**OPTIONS[option]), DATA[0]
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), batch)
    niwaki.prune_(model, STAGES["bias"], DATA)
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), batch)
    write_adapter(model, tmp_path, tmp_path)
    assert_same(model, niwaki.load(tmp_path), batch)


@pytest.mark.parametrize("stage", STAGES)
def test_a_repair_finds_what_it_finds_for_the_merged_model(stage):
    """The adapter is one way of writing the linear, so what comes out must not depend on it."""
    model, batch = lora(lora_bias=True), DATA[0]
    plain = niwaki.merge_(copy.deepcopy(model))
    for each in (model, plain):
        niwaki.prune_(each, STAGES[stage], DATA)
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), batch)
    torch.testing.assert_close(logits(model, batch), logits(plain, batch), rtol=1e-3, atol=1e-3)


def test_a_half_precision_base_with_a_lora_bias_runs_under_masks():
    model = with_lora(tiny("bert").bfloat16(), lora_bias=True)
    dtypes = {model(**DATA[0]).logits.dtype}
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, steps=2), DATA)
    dtypes.add(model(**DATA[0]).logits.dtype)
    assert dtypes == {torch.bfloat16}


def test_a_conv1d_with_a_lora_bias():
    model, data = lora("gpt2", lora_bias=True), batches(count=1, family="gpt2")
    niwaki.prune_(model, niwaki.Structured(flops=0.7), data)
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), data[0])


def test_an_emptied_site_keeps_what_its_adapter_adds():
    model, batch = lora(lora_bias=True), DATA[0]
    niwaki.prune_(model, niwaki.Structured(flops=0.5, drop_layers=1, repair="none"), DATA)
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), batch)


@pytest.mark.parametrize("stage", ["bias", "layer-adaptive"])
def test_several_active_adapters(stage):
    config = {"r": 4, "lora_alpha": 8, "lora_bias": True}
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_lin", "out_lin", "lin2"], **config))
    model.add_adapter("second", LoraConfig(target_modules=["v_lin", "lin2"], **config))
    model.add_adapter("idle", LoraConfig(target_modules=["q_lin", "lin2"], **config))
    model.base_model.set_adapter(["default", "second"])
    grown(model.eval())
    niwaki.prune_(model, STAGES[stage], DATA)
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), DATA[0])


@pytest.mark.parametrize("merged", [False, True], ids=["", "merged"])
@pytest.mark.parametrize("disabled", [False, True], ids=["", "disabled"])
def test_adapters_that_are_merged_or_disabled(merged, disabled):
    model, batch = lora(lora_bias=True), DATA[0]
    if merged:
        model.merge_adapter()
    if disabled:
        model.base_model.disable_adapter_layers()
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), batch)
    niwaki.prune_(model, STAGES["bias"], DATA)
    assert_same(model, niwaki.merge_(copy.deepcopy(model)), batch)


def test_an_effective_bias_is_read_and_written():
    linear = linears_of(lora(lora_bias=True))[0].module
    stored, wanted = bias_of(linear).detach().clone(), torch.randn(32)
    x = torch.randn(5, 32)
    expected = torch.nn.functional.linear(x, effective_weight(linear), effective_bias(linear))
    torch.testing.assert_close(linear(x), expected)
    assert (effective_bias(linear) - stored).abs().max() > 1
    set_effective_bias_(linear, wanted)
    torch.testing.assert_close(effective_bias(linear), wanted)


def test_a_lora_bias_without_a_bias_to_merge_it_into_is_refused_at_once():
    model = tiny("llama")
    with pytest.warns(UserWarning, match="lora_bias"):
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj"], lora_bias=True))
    before = {linear.name: weight_of(linear.module).clone() for linear in linears_of(unwrap(tuned))}
    for work in (
        lambda: niwaki.prune_(tuned, niwaki.Structured(flops=0.7), batches(family="llama")),
        lambda: niwaki.merge_(tuned),
    ):
        with pytest.raises(niwaki.RequestError, match="lora_bias must be False"):
            work()
    assert all(torch.equal(before[linear.name], weight_of(linear.module)) for linear in linears_of(tuned))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "mica"}], ids=str)
def test_a_variant_of_lora_is_refused(options):
    model = get_peft_model(tiny(), LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"], **options))
    with pytest.raises(niwaki.RequestError, match="rank-stabilised LoRA, got"):
        niwaki.prune_(model, niwaki.Structured(flops=0.7), batches())


def test_merged_adapters_are_refused_where_masks_are_to_be_held():
    model = lora()
    model.merge_adapter()
    with pytest.raises(niwaki.RequestError, match="adapter must be unmerged"):
        niwaki.prune_(model, STAGES["layer-adaptive"], DATA)
