"""Products in half precision where the processor has no kernels for them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import niwaki.numerics.half
from niwaki.adapters import apply_mask_, materialized_weights
from niwaki.anatomy import linears_of
from niwaki.evaluate import log_likelihoods, perplexity, quality
from niwaki.methods.prune import score
from niwaki.numerics.half import half_in_float32
from tiny import batches, tiny, with_lora

HALF = [torch.bfloat16, torch.float16]
IN_HALF, IN_FLOAT32 = torch.nn.Linear(8, 6).bfloat16(), torch.nn.Linear(8, 6)
"""A model of each kind."""


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(niwaki.numerics.half, "_has_kernels", lambda dtype: False)


def parts(dtype, shape: tuple[int, ...] = (2, 5, 8)):
    """x, W, b and a gradient of the output of a linear of 8 inputs and 6 outputs."""
    torch.manual_seed(0)
    x, w, b = torch.randn(shape), torch.randn(6, 8), torch.randn(6)
    return [value.to(dtype).requires_grad_() for value in (x, w, b)], torch.randn(*shape[:-1], 6).to(dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("without_kernels")
def test_products_and_gradients_are_those_of_float32_rounded(dtype, bias):
    given, gradient = parts(dtype)
    given = given if bias else given[:2]
    exact = [value.detach().float().requires_grad_() for value in given]
    wanted = F.linear(*exact)
    wanted_gradients = torch.autograd.grad(wanted, exact, gradient.float())
    with half_in_float32(IN_HALF):
        found = F.linear(*given)
        found_gradients = torch.autograd.grad(found, given, gradient)
    assert torch.equal(found, wanted.to(dtype))
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype))


@pytest.mark.usefixtures("without_kernels")
def test_the_linears_of_gpt2_too():
    (x, w, b), gradient = parts(torch.bfloat16, (5, 8))
    wanted = F.linear(x.float(), w.float(), b.float()).bfloat16()
    across = w.T.detach().contiguous().requires_grad_()
    with half_in_float32(IN_HALF):
        found = torch.addmm(b, x, across)
        of_weight = torch.autograd.grad(found, across, gradient)[0]
    assert torch.equal(found, wanted)
    assert torch.equal(of_weight, (x.float().T @ gradient.float()).bfloat16())


@pytest.mark.usefixtures("without_kernels")
def test_a_frozen_weight_keeps_no_input_and_nothing_in_float32():
    (x, w, _), _ = parts(torch.bfloat16)
    kept = []
    with half_in_float32(IN_HALF), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.linear(x, w.detach())
    assert [(tensor.shape, tensor.dtype) for tensor in kept] == [((6, 8), torch.bfloat16)]


@pytest.mark.usefixtures("without_kernels")
def test_float32_and_what_stands_outside_are_left_alone(monkeypatch):
    monkeypatch.setattr(niwaki.numerics.half, "_linear", pytest.fail)
    (x, w, b), _ = parts(torch.float32)
    with half_in_float32(IN_HALF):
        F.linear(x, w, bias=b)
        torch.addmm(b, x[0], w.T)
    F.linear(x.bfloat16(), w.bfloat16())


def test_a_processor_with_kernels_uses_them(monkeypatch):
    monkeypatch.setattr(niwaki.numerics.half, "_has_kernels", lambda dtype: True)
    monkeypatch.setattr(niwaki.numerics.half, "_linear", pytest.fail)
    (x, w, b), _ = parts(torch.bfloat16)
    with half_in_float32(IN_HALF):
        F.linear(x, w, b)


def modes() -> int:
    return torch._C._len_torch_function_stack()


@pytest.mark.usefixtures("without_kernels")
def test_a_model_in_float32_opens_nothing():
    with half_in_float32(IN_FLOAT32):
        assert modes() == 0
    with half_in_float32(IN_FLOAT32, IN_HALF):
        assert modes() == 1
    assert modes() == 0


def test_a_model_in_half_precision_opens_nothing_where_there_are_kernels(monkeypatch):
    monkeypatch.setattr(niwaki.numerics.half, "_has_kernels", lambda dtype: True)
    with half_in_float32(IN_HALF):
        assert modes() == 0


RECOVERED = {"recover_epochs": 1}
USES = {
    "quality": lambda model, data: quality(model, data),
    "perplexity": lambda model, data: perplexity(model, data),
    "questions": lambda model, data: log_likelihoods(model, [([1], [5])], 1),
    "units": lambda model, data: score(model, data, niwaki.Structured(flops=0.5)),
    "weights": lambda model, data: score(model, data, niwaki.LayerAdaptive(sparsity=0.5)),
    "stream": lambda model, data: niwaki.prune_(model, niwaki.Structured(flops=0.5, head_score="random"), data),
    "training": lambda model, data: niwaki.prune_(model, niwaki.Structured(flops=0.9, **RECOVERED), data),
    "layers that run again": lambda model, data: niwaki.prune_(
        model, niwaki.Structured(flops=0.9, gradient_checkpointing=True, **RECOVERED), data
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.usefixtures("without_kernels")
def test_every_pass_opens_it_for_half_precision_alone(use, dtype):
    model, opened = tiny("llama").to(dtype), []
    linears_of(model)[0].module.register_forward_hook(lambda *_: opened.append(modes()))
    USES[use](model, batches(count=1, family="llama"))
    assert set(opened) == {0 if dtype is torch.float32 else 1}


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.usefixtures("without_kernels")
def test_what_a_pass_over_the_layers_makes_up_is_multiplied_in_float32_too(lora, monkeypatch):
    model = tiny("llama").bfloat16()
    model = with_lora(model) if lora else model
    linears, used = linears_of(model), []
    for linear in linears:
        apply_mask_(linear.module, torch.rand(linear.shape) < 0.5)
    one = niwaki.numerics.half._linear
    monkeypatch.setattr(niwaki.numerics.half, "_linear", lambda *a, **k: used.append(1) or one(*a, **k))
    with torch.no_grad(), half_in_float32(model), materialized_weights(model):
        model(**batches(count=1, family="llama")[0])
    assert len(used) == len(linears) + 1  # and the task head


@pytest.mark.parametrize("family", ["distilbert", "llama", "gpt2"])
def test_a_model_says_the_same(family, monkeypatch):
    model, batch = tiny(family).bfloat16(), batches(count=1, family=family)[0]
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(niwaki.numerics.half, "_has_kernels", lambda dtype, kernels=kernels: kernels)
        with torch.no_grad(), half_in_float32(model):
            found.append(model(**batch).logits.float())
    assert torch.allclose(*found, atol=0.05)
