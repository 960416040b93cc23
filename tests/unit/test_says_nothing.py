"""A model that says the same of all that it is asked has figures, but they tell nothing: that is said."""

from __future__ import annotations

import pytest
import torch

from niwaki.anatomy import Predictions
from niwaki.evaluate import Judged
from niwaki.run.record import State, says_nothing


@pytest.mark.parametrize(
    ("kind", "values", "alike"),
    [
        ("class", [[0.1, 2.0], [-1.0, 0.0]], True),
        ("class", [[0.1, 2.0], [1.0, 0.0]], False),
        ("labels", [[-1.0, -2.0], [-0.1, -3.0]], True),
        ("labels", [[-1.0, 2.0], [-0.1, -3.0]], False),
        ("number", [[2.0], [2.001]], True),
        ("number", [[2.0], [2.01]], False),
        ("number", [[0.0], [0.0]], True),
        ("vector", [[1.0, 1.0], [1.0, 1.0]], False),
    ],
)
def test_what_is_alike(kind, values, alike):
    assert Predictions(kind, torch.tensor(values)).all_alike is alike


def test_only_what_can_be_chosen_counts():
    values, possible = torch.tensor([[5.0, 1.0, 0.0], [5.0, 0.0, 1.0]]), torch.tensor([[False, True, True]] * 2)
    assert Predictions("class", values).all_alike
    assert not Predictions("class", values, possible).all_alike


def state(values, **record):
    return State(record, Judged({}, predictions=None if values is None else Predictions("class", values)))


def test_a_warning_for_many_that_are_alike():
    same, other = torch.tensor([[1.0, 0.0]]).repeat(100, 1), torch.eye(2).repeat(50, 1)
    said = "quality: the dense model says the same in all its 100 predictions of eval_data"
    assert says_nothing({"the dense model": state(same), "what came out": state(other)}) == [said]
    assert says_nothing({"a": state(same[:99]), "b": state(None), "c": state(same, new_head=True)}) == []
