"""bfloat16 weights: sums and scores in float32, the budget exact, zeros that stay, files as they were loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open

import niwaki
from niwaki.adapters import effective_weight, masks_of
from niwaki.anatomy import linears_of, weight_of
from niwaki.evaluate import quality
from niwaki.observe import Need, observe
from niwaki.observe.moments import input_moments
from tiny import batches, logits, tiny, with_lora

FAMILIES = ["llama", "gpt2", "distilbert"]
CONFIGS = [
    niwaki.Structured(flops=0.6),
    niwaki.Structured(flops=0.6, head_score="taylor", neuron_score="fisher", repair="none"),
    niwaki.Structured(flops=0.6, head_score="attention-variance", neuron_score="activation", steps=2),
    niwaki.LayerAdaptive(sparsity=0.5),
    niwaki.LayerAdaptive(sparsity=0.5, weight_score="wanda", allocation="uniform", repair="none"),
    niwaki.LayerAdaptive(sparsity=0.5, weight_score="sparsegpt", allocation="uniform", repair="none"),
    niwaki.LayerAdaptive(sparsity=0.5, weight_score="gradient", allocation="global"),
    niwaki.LayerAdaptive(sparsity=0.5, allocation="inverse-importance", layer_score="sensitivity"),
    niwaki.LayerAdaptive(sparsity=0.5, pattern="2:4"),
]


def half(family: str, lora: bool = False) -> torch.nn.Module:
    model = tiny(family, layers=2)
    for parameter in model.parameters():  # as a checkpoint is loaded: tables of positions stay as they are
        parameter.data = parameter.data.to(torch.bfloat16)
    return with_lora(model) if lora else model


@pytest.mark.parametrize(("family", "lora"), [*((family, False) for family in FAMILIES), ("llama", True)])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, vars(config).values()))[:60])
def test_pruned_on_budget_and_saved_as_it_is(family, config, lora, tmp_path):
    model = half(family, lora)
    result = niwaki.prune_(model, config, batches(family=family))
    assert result.achieved <= result.requested + 1e-3
    plain = niwaki.merge_(copy.deepcopy(model))
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    niwaki.save(model, tmp_path / "out")
    again = niwaki.load(tmp_path / "out", dtype="auto")
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    if isinstance(config, niwaki.LayerAdaptive):
        total = sum(linear.size for linear in linears_of(model))
        masks = masks_of(again)
        assert sum(int((~mask).sum()) for mask in masks.values()) == total // 2
        for linear in linears_of(again):
            assert not effective_weight(linear.module)[~masks[linear.name]].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_those_of_float32_to_the_precision_of_the_activations(family):
    rounded = half(family)
    exact, data = copy.deepcopy(rounded).float(), batches(family=family, count=10, rows=24)
    everything = Need(task_gradients=True, weight_gradients=True, gradient_moments=True, attention=True)
    both = [observe(model, data, everything) for model in (rounded, exact)]
    for kinds in zip(*(sums.sites.values() for sums in both), strict=True):
        for name in ("fisher", "taylor", "attention"):
            found, wanted = (getattr(sums, name) for sums in kinds)
            if name == "attention" and not isinstance(wanted, torch.Tensor):
                continue
            assert found.dtype in (torch.float32, torch.float64)
            if name == "attention":  # no drawn labels, no differences of large numbers
                torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02 * float(wanted.abs().max()))
    for linear in linears_of(exact):
        found, wanted = (sums.linears[linear.name] for sums in both)
        for name in ("inputs", "input_squares", "gradient_squares", "weight_gradient"):
            assert getattr(found, name).dtype in (torch.float32, torch.float64)
        assert not linear.writes or found.gradient_moments.dtype == torch.float32
        torch.testing.assert_close(found.input_squares, wanted.input_squares, rtol=0.02, atol=1e-3)
        assert found.activation_size == pytest.approx(wanted.activation_size, rel=0.01)
    assert all(moments.dtype == torch.double for _, moments in input_moments(rounded, data))


@pytest.mark.parametrize("family", FAMILIES)
def test_quality_is_that_of_float32(family):
    model, data = half(family), batches(family=family)
    found, wanted = (quality(side, data) for side in (model, copy.deepcopy(model).float()))
    assert found == pytest.approx(wanted, rel=0.02)


def test_loading_in_every_dtype(tmp_path):
    model = half("llama")
    niwaki.save(model, tmp_path / "half")
    niwaki.save(model.float(), tmp_path / "single")
    niwaki.save(model.half(), tmp_path / "float16")
    for folder, asked, dtype in [
        ("half", "float32", torch.float32),
        ("half", "auto", torch.bfloat16),
        ("single", "auto", torch.float32),
        ("single", "bfloat16", torch.bfloat16),
        ("float16", "auto", torch.float32),
    ]:
        again = niwaki.load(tmp_path / folder, dtype=asked)
        assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    with pytest.raises(niwaki.RequestError, match=r"dtype must be one of auto, bfloat16, float32, got 'float16'"):
        niwaki.load(tmp_path / "half", dtype="float16")


def test_an_adapter_on_a_bfloat16_base(tmp_path):
    model = half("llama", lora=True)
    niwaki.save(half("llama"), tmp_path / "base")
    model.save_pretrained(str(tmp_path / "adapter"))
    again = niwaki.load(tmp_path / "adapter", base_model=str(tmp_path / "base"), dtype="bfloat16")
    assert all(weight_of(linear.module).dtype == torch.bfloat16 for linear in linears_of(again))
    assert torch.equal(logits(again, batches()[0]), logits(model, batches()[0]))


def test_compact_files_hold_bfloat16(tmp_path):
    model = half("llama")
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="wanda"), batches(family="llama", count=2))
    niwaki.save(model, tmp_path / "out", compact=True)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as tensors:
        values = [tensors.get_tensor(name) for name in tensors.keys() if name.endswith(".values")]  # noqa: SIM118
    assert {value.dtype for value in values} == {torch.bfloat16}
    again = niwaki.load(tmp_path / "out", dtype="auto")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_lora_trains_and_what_would_round_to_nothing_is_refused():
    data = batches(family="llama", count=2)
    tuned, _ = niwaki.finetune(half("llama"), niwaki.Finetune(epochs=1, lora_rank=4), data)
    trained = {parameter.dtype for parameter in tuned.parameters() if parameter.requires_grad}
    assert trained == {torch.float32}
    with pytest.raises(niwaki.RequestError, match=r"dtype must be float32 to train .*classifier.*, got bfloat16"):
        niwaki.finetune(half("distilbert"), niwaki.Finetune(epochs=1, lora_rank=4), batches(count=2))
