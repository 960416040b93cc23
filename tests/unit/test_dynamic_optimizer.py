"""Optimizer state: a dropped weight leaves nothing behind, a grown one steps as one that was just born."""

from __future__ import annotations

import pytest
import torch

import niwaki
from niwaki.anatomy import linears_of, weight_of
from niwaki.methods.dynamic.optimizer_state import Ages, clear_, statement
from tiny import batches, tiny

GROWN = torch.tensor([[True, False, True], [False, False, False]])
MAKERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.0),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True, weight_decay=0.0),
    "maximize": lambda p: torch.optim.AdamW(p, lr=0.1, maximize=True, weight_decay=0.0),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "dampened, maximize": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, maximize=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_a_grown_weight_steps_as_a_new_parameter_does(maker):
    torch.manual_seed(0)
    gradients = torch.randn(20, 2, 3)
    old = torch.nn.Parameter(torch.randn(2, 3))
    optimizer = maker([old])
    ages = Ages(old)
    for gradient in gradients[:8]:
        old.grad = gradient.clone()
        optimizer.step()
    clear_(optimizer, old, GROWN)
    ages.change(torch.zeros_like(GROWN), GROWN)
    new = torch.nn.Parameter(old.detach().clone())
    fresh = maker([new])
    for gradient in gradients[8:]:
        old.grad, new.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        ages.correct_(optimizer)
        fresh.step()
        torch.testing.assert_close(old[GROWN], new[GROWN])
    assert not torch.allclose(old[~GROWN], new[~GROWN])


def test_without_the_age_the_first_step_would_be_three_learning_rates():
    old = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([old], lr=0.1)
    for _ in range(5000):
        old.grad = torch.ones(1)
        optimizer.step()
    clear_(optimizer, old, torch.tensor([True]))
    ages, before = Ages(old), old.detach().clone()
    ages.change(torch.tensor([False]), torch.tensor([True]))
    optimizer.step()
    assert float((before - old).detach()) == pytest.approx(0.316, abs=5e-3)
    ages.correct_(optimizer)
    assert float((before - old).detach()) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "NAdam"])
def test_a_dropped_weight_does_not_move_and_has_no_moments(name):
    model = tiny().train()
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3, weight_decay=0.1, **options)
    sparse = niwaki.DynamicSparsity(
        sparsity=0.6, schedule="constant", interval=2, stop=0.9, grow="random", drop="magnitude"
    )
    controller = sparse.attach(model, optimizer, 8)
    for batch in batches() * 2:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        for linear in linears_of(model):
            weight, mask = weight_of(linear.module), controller.masks[linear.name]
            assert (weight[~mask] == 0).all()
            for value in optimizer.state[weight].values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    assert (value[~mask] == 0).all()
    assert sum(row.grown for row in controller.history) > 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 has Muon")
@pytest.mark.parametrize("returns", ["value", "zero"])
def test_an_optimizer_that_mixes_the_weights_of_a_matrix_leaves_zeros_zero(returns):
    model = tiny().train()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() == 2)
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    options = {"grow": "gradient", "drop": "magnitude", "returns": returns}
    sparse = niwaki.DynamicSparsity(sparsity=0.6, schedule="constant", interval=2, window=1, stop=0.9, **options)
    controller, grown = sparse.attach(model, optimizer, 8), 0
    for batch in batches() * 2:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        had = {name: controller.dense(name) for name in controller.linears}
        for linear in linears_of(model):
            assert (weight_of(linear.module)[~controller.masks[linear.name]] == 0).all()
        for linear in linears_of(model) if controller.step() else ():
            new = controller.newest[linear.name]
            assert torch.equal(weight_of(linear.module)[new], had[linear.name][new])
            grown += int(new.sum())
    assert grown > 0


def test_what_is_done_is_said():
    weight = [torch.nn.Parameter(torch.zeros(1))]
    assert "own age" in statement(torch.optim.AdamW(weight))
    assert "age of their parameter" in statement(torch.optim.RMSprop(weight))
