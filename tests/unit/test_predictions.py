"""What models say, whatever their task: how far apart two are, and the curvature that a contrast stands for."""

from __future__ import annotations

import math

import pytest
import torch

from niwaki.anatomy import Predictions, joined


def curvature(found: Predictions, draws: int = 4000) -> torch.Tensor:
    """Mean of g g^T of one prediction over many contrasts."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(found.values.shape[1], found.values.shape[1])
    for _ in range(draws):
        values = found.values.clone().requires_grad_()
        Predictions(found.kind, values, found.possible).contrast(generator).backward()
        gradient = values.grad
        assert gradient is not None
        total += gradient.T @ gradient
    return total / draws


def test_a_contrast_has_the_curvature_of_even_classes():
    """One of m classes drawn evenly less their mean: I / m - 1 / m^2, the Fisher information of even chances."""
    found = curvature(Predictions("class", torch.randn(1, 4)))
    torch.testing.assert_close(found, torch.eye(4) / 4 - 1 / 16, rtol=0, atol=0.02)


def test_classes_that_cannot_be_chosen_have_none():
    possible = torch.tensor([[True, False, True, False]])
    found = curvature(Predictions("class", torch.randn(1, 4), possible))
    wanted = torch.zeros(4, 4)
    wanted[0, 0] = wanted[2, 2] = 0.25
    wanted[0, 2] = wanted[2, 0] = -0.25
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_labels_stand_alone():
    torch.testing.assert_close(curvature(Predictions("labels", torch.randn(1, 3))), torch.eye(3), rtol=0, atol=0.05)


def test_a_vector_feels_what_turns_it():
    """The curvature of 1 - cos at the vector itself, (I - u u^T) / |v|^2 with u = v / |v|."""
    v = torch.tensor([[2.0, -1.0, 2.0]])
    u = v[0] / 3
    wanted = (torch.eye(3) - torch.outer(u, u)) / 9
    torch.testing.assert_close(curvature(Predictions("vector", v)), wanted, rtol=0, atol=0.01)
    free = v[0].double().requires_grad_()
    apart = lambda w: Predictions("vector", w[None]).divergence_from(Predictions("vector", v.double())).sum()  # noqa: E731
    hessian = torch.autograd.functional.hessian(apart, free)
    torch.testing.assert_close(hessian, wanted.double(), rtol=0, atol=1e-6)


def test_divergences_by_hand():
    half, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])  # 1/2, 1/2 and 3/4, 1/4
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = Predictions("class", half).divergence_from(Predictions("class", sure))
    assert found.tolist() == pytest.approx([kl], rel=1e-5)
    # Each label for itself: the second is alike in both.
    found = Predictions("labels", half).divergence_from(Predictions("labels", sure))
    assert found.tolist() == pytest.approx([kl], rel=1e-5)
    found = Predictions("number", torch.tensor([[1.0]])).divergence_from(Predictions("number", torch.tensor([[3.0]])))
    assert found.tolist() == [2.0]
    found = Predictions("vector", torch.tensor([[1.0, 0]])).divergence_from(
        Predictions("vector", torch.tensor([[2.0, 2]]))
    )
    assert found.tolist() == pytest.approx([1 - 0.5**0.5])


def test_agreement():
    a = Predictions("class", torch.tensor([[1.0, 0], [0, 1]]))
    assert a.agrees_with(Predictions("class", torch.tensor([[3.0, 2], [2, 1]]))).tolist() == [1, 0]
    a = Predictions("labels", torch.tensor([[1.0, -1], [1, 1]]))
    assert a.agrees_with(Predictions("labels", torch.tensor([[2.0, -2], [1, -1]]))).tolist() == [1, 0]
    possible = torch.tensor([[True, False]])
    a = Predictions("class", torch.tensor([[0.0, 9]]), possible)
    assert a.agrees_with(Predictions("class", torch.tensor([[5.0, 1]]), possible)).tolist() == [1]


def test_parts_and_joins_change_nothing():
    possible = torch.rand(7, 3) > 0.3
    possible[:, 0] = True
    a, b = (Predictions("class", torch.randn(7, 3), possible) for _ in range(2))
    found = torch.cat([x.divergence_from(y) for x, y in zip(a.parts(3), b.parts(3), strict=True)])
    torch.testing.assert_close(found, a.divergence_from(b))
    narrow = Predictions("class", torch.randn(2, 2), torch.ones(2, 2, dtype=torch.bool))
    both = joined([a, narrow])
    assert both.values.shape == (9, 3)
    assert both.possible is not None
    assert not bool(both.possible[7:, 2].any())
