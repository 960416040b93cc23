"""Zeros on disk: plain tensors with the masks beside them, or packed; both come back bit for bit, masks held."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

import niwaki
from niwaki.adapters import masks_of
from niwaki.anatomy import linears_of
from niwaki.checkpoint import write_adapter
from tiny import CUT, ROWS, batches, logits, tiny, with_lora


@pytest.fixture(params=["even", "uneven"])
def sparse(request):
    model = with_lora(tiny())
    if request.param == "uneven":
        niwaki.prune_(model, niwaki.Structured(flops=0.7, **CUT), batches(count=2))
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.8), batches(count=2))
    return model


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("stock", [False, True])
def test_round_trip_is_bit_equal(sparse, tmp_path, compact, stock):
    plain = niwaki.merge_(copy.deepcopy(sparse))
    niwaki.save(sparse, tmp_path / "out", compact=compact)
    how = AutoModelForSequenceClassification.from_pretrained if stock else niwaki.load
    again = how(tmp_path / "out").eval()
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(logits(again, batches()[0]), logits(plain, batches()[0]))
    if compact or not stock:
        masks = masks_of(again)
        assert all(torch.equal(masks[name], mask) for name, mask in masks_of(plain).items())
        niwaki.save(again, tmp_path / "twice", compact=compact)
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "twice")]
        assert files[0] == files[1]


def test_the_zeros_are_in_the_file(sparse, tmp_path):
    niwaki.save(sparse, tmp_path / "out")
    wanted = sum(int((~mask).sum()) for mask in masks_of(sparse).values())
    names = {f"{name}.weight" for name, m in niwaki.load(tmp_path / "out").named_modules() if hasattr(m, "mask")}
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as tensors:
        assert sum(int((tensors.get_tensor(name) == 0).sum()) for name in names) == wanted


@pytest.mark.parametrize("family", ROWS)
def test_compact_files_of_every_family(tmp_path, family):
    model = tiny(family)
    config = niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", allocation="uniform", repair="none")
    niwaki.prune_(model, config, batches(count=1, family=family))
    niwaki.save(model, tmp_path / "out", compact=True)
    again = niwaki.load(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_compact_is_small(tmp_path):
    dense, model = tiny(), tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.9, allocation="uniform"), batches(count=2))
    niwaki.save(dense, tmp_path / "dense")
    niwaki.save(model, tmp_path / "compact", compact=True)
    size, small = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "compact"))
    weights = 4 * sum(linear.size for linear in linears_of(dense))
    # Bits and values take 1/32 + 0.1; the rest is names of tensors.
    assert size - small > (1 - 1 / 32 - 0.1) * weights - 18 * 200


def test_an_adapter_trained_under_masks_comes_back_under_them(sparse, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_adapter(sparse, folder, folder)
    again = niwaki.load(folder / "adapter")
    assert isinstance(again, PeftModel)
    torch.testing.assert_close(logits(again, batches()[0]), logits(sparse, batches()[0]), rtol=0, atol=1e-5)
    merged = niwaki.merge_(again)
    torch.testing.assert_close(logits(merged, batches()[0]), logits(sparse, batches()[0]), rtol=0, atol=1e-5)
    (folder / "adapter" / "masks.safetensors").unlink()
    with pytest.raises(niwaki.RequestError, match="must hold the mask"):
        niwaki.merge_(niwaki.load(folder / "adapter"))


def test_a_damaged_mask_file_is_refused_by_name(sparse, tmp_path):
    niwaki.save(sparse, tmp_path / "out")
    path = tmp_path / "out" / "masks.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(niwaki.RequestError, match=r"masks\.safetensors"):
        niwaki.load(tmp_path / "out")
