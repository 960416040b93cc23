"""Models held in bfloat16: statistics and solves in float32 and above, weights written back, zeros exact; shards."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

import niwaki
from niwaki.anatomy import linears_of, weight_of
from niwaki.checkpoint import SHARD, weight_files
from niwaki.lora import effective_weight, masks_of, merge_
from niwaki.observe import Need, observe
from niwaki.observe_linears import WeightNeed, observe_linears
from tiny import auto_class, batches, logits, tiny, with_lora

FAMILIES = ["distilbert", "llama", "gpt2"]


def _bfloat16(family, lora=False):
    model = tiny(family).to(torch.bfloat16)
    return with_lora(model) if lora else model


def _dtypes(model):
    return {parameter.dtype for parameter in model.parameters()}


def test_a_model_is_loaded_and_saved_as_asked(tmp_path):
    niwaki.save(_bfloat16("llama"), tmp_path / "half")
    niwaki.save(tiny("llama"), tmp_path / "whole")
    for folder, dtype, wanted in (
        ("half", "auto", torch.bfloat16),
        ("half", "float32", torch.float32),
        ("whole", "auto", torch.float32),
        ("whole", "bfloat16", torch.bfloat16),
    ):
        model = niwaki.load(tmp_path / folder, dtype=dtype)
        assert _dtypes(model) == {wanted}
        niwaki.save(model, tmp_path / "again", overwrite=True)
        assert {value.dtype for value in load_file(tmp_path / "again" / "model.safetensors").values()} == {wanted}
    with pytest.raises(niwaki.RequestError, match="dtype must be one of auto, bfloat16, float32, got 'float16'"):
        niwaki.load(tmp_path / "half", dtype="float16")


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_summed_in_float32(family):
    model, data = _bfloat16(family), batches(count=3, family=family)
    same = copy.deepcopy(model).float()
    need = Need(task_gradients=True, output_gradients=True, attention=True)
    found, wanted = (observe(each, data, need) for each in (model, same))
    for name, sums in found.sites.items():
        for key, value in vars(sums).items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == torch.float32
                size = float(getattr(wanted.sites[name], key).norm())
                # The gradients of drawn logits depend on the logits, which differ in the last digits.
                assert float((value - getattr(wanted.sites[name], key)).norm()) < 0.25 * size, (name, key)
    for sums in observe_linears(model, data, WeightNeed(weight_gradients=True)).linears.values():
        assert sums.input_squares.dtype == sums.weight_gradient.dtype == torch.float32


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [
        niwaki.Structured(flops=0.6),
        niwaki.LayerAdaptive(sparsity=0.6),
        niwaki.LayerAdaptive(sparsity=0.6, weight_score="wanda", allocation="uniform", repair="none"),
        niwaki.LayerAdaptive(sparsity=0.6, weight_score="sparsegpt", allocation="uniform", repair="none"),
        niwaki.LayerAdaptive(sparsity=0.6, recover_epochs=1),
    ],
    ids=["structured", "default", "wanda", "sparsegpt", "recovered"],
)
def test_every_technique_leaves_bfloat16_and_exact_zeros(config, family, lora):
    model, data = _bfloat16(family, lora), batches(count=4, family=family)
    result = niwaki.prune_(model, config, data)
    assert all(weight_of(linear.module).dtype == torch.bfloat16 for linear in linears_of(model))
    plain = merge_(model)
    assert all(bool(parameter.isfinite().all()) for parameter in plain.parameters())
    if isinstance(config, niwaki.LayerAdaptive):
        total = sum(linear.size for linear in linears_of(plain))
        masked = sum(int((~mask).sum()) for mask in masks_of(plain).values())
        assert masked == result.details["zeros"] == round(0.6 * total)
        zeros = sum(int((effective_weight(linear.module) == 0).sum()) for linear in linears_of(plain))
        assert zeros == masked


@pytest.mark.parametrize("family", FAMILIES)
def test_repair_brings_the_pruned_model_nearer(family):
    dense, data, distances = _bfloat16(family), batches(count=8, family=family), {}
    for repair in ("none", "least-squares"):
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.6, repair=repair), data)
        distances[repair] = sum(float((logits(model, b) - logits(dense, b)).float().square().mean()) for b in data)
    assert distances["least-squares"] < distances["none"]


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_are_written_and_read(compact, dtype, tmp_path):
    niwaki.save(tiny("llama"), tmp_path / "dense")
    model, batch = niwaki.load(tmp_path / "dense", dtype=str(dtype).removeprefix("torch.")), batches(family="llama")[0]
    niwaki.prune_(
        model, niwaki.LayerAdaptive(sparsity=0.7, weight_score="magnitude", repair="none"), batches(family="llama")
    )
    assert len(weight_files(_saved(model, tmp_path / "one", compact))) == 1
    files = weight_files(_saved(model, tmp_path / "many", compact, "20KB"))
    assert len(files) > 2
    assert sum(path.stat().st_size for path in files) < 1.3 * (tmp_path / "one" / "model.safetensors").stat().st_size
    for other in (
        niwaki.load(tmp_path / "many", dtype="auto"),
        auto_class("llama").from_pretrained(tmp_path / "many", dtype="auto"),
    ):
        assert _dtypes(other) == {dtype}
        assert torch.equal(logits(other, batch), logits(model, batch))
    masks, held = masks_of(niwaki.load(tmp_path / "many")), masks_of(model)
    assert all(torch.equal(mask, held[name]) for name, mask in masks.items())


def _saved(model, folder, compact, max_shard_size=SHARD):
    niwaki.save(model, folder, compact=compact, max_shard_size=max_shard_size)
    return folder


def test_a_missing_shard_is_said(tmp_path):
    niwaki.save(tiny("llama"), tmp_path / "many", max_shard_size="20KB")
    weight_files(tmp_path / "many")[1].unlink()
    with pytest.raises(niwaki.RequestError, match="model"):
        niwaki.load(tmp_path / "many")
