"""What every allocator owes: on budget and never above it, inside the bounds, by score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.allocation import ALLOCATORS, Bounds, least_cost


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.sampled_from([1, 4]), st.booleans())
def test_budget_and_bounds(name, seed, fraction, multiple, remainder):
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"s{i}": int(torch.randint(1, 30, (), generator=generator)) for i in range(5)}
    scores = {n: torch.rand(size, generator=generator).double() for n, size in sizes.items()}
    bounds = {n: Bounds.linear(1.0 + i, size, 1, multiple, remainder) for i, (n, size) in enumerate(sizes.items())}
    total = sum(bounds[n].cost(size) for n, size in sizes.items())
    least = least_cost(bounds)
    budget = least + fraction * (total - least)
    kept = ALLOCATORS[name](scores, bounds, budget)
    spent = sum(bounds[n].cost(len(kept[n])) for n in sizes)
    assert spent <= budget * (1 + 1e-9)
    open_sites = [n for n in sizes if len(kept[n]) < sizes[n]]
    step = 1 if remainder else multiple
    assert all(budget - spent < bounds[n].cost(step) + 1e-9 for n in open_sites)
    odd = [n for n in sizes if len(kept[n]) % multiple and len(kept[n]) < sizes[n]]
    assert len(odd) <= remainder
    for n, units in kept.items():
        assert len(units) >= 1
        gone = [u for u in range(sizes[n]) if u not in units.tolist()]
        if gone:
            assert scores[n][units].min() >= scores[n][gone].max()


@pytest.mark.parametrize("name", ALLOCATORS)
def test_groups_keep_as_many_units_each(name):
    scores = {"a": torch.tensor([9.0, 8, 7, 1, 2, 3]), "b": torch.tensor([5.0, 5, 5, 5])}
    bounds = {"a": Bounds.linear(1.0, 6, 1, 2, groups=2), "b": Bounds.linear(1.0, 4, 1, 2, groups=2)}
    kept = ALLOCATORS[name](scores, bounds, 8.0)
    assert sum(map(len, kept.values())) == 8
    for units, size in ((kept["a"], 3), (kept["b"], 2)):
        assert len(units[units < size]) == len(units[units >= size])
    # The best of each group stay: whatever a threshold says, the first of the second group is not among them.
    assert ALLOCATORS[name](scores, bounds, 6.0)["a"].tolist()[-1] == 5


def test_global_prefers_score_per_cost():
    scores = {"cheap": torch.tensor([3.0, 1.0]), "dear": torch.tensor([5.0, 4.0])}
    bounds = {"cheap": Bounds.linear(1.0, 2, 0), "dear": Bounds.linear(10.0, 2, 0)}
    kept = ALLOCATORS["global"](scores, bounds, 12.0)
    assert kept["cheap"].tolist() == [0, 1]
    assert kept["dear"].tolist() == [0]


def test_uniform_keeps_the_same_fraction_everywhere():
    scores = {"a": torch.arange(40.0), "b": torch.arange(40.0) * 1000}
    kept = ALLOCATORS["uniform"](scores, {"a": Bounds.linear(1.0, 40, 1), "b": Bounds.linear(1.0, 40, 1)}, 40.0)
    assert len(kept["a"]) == len(kept["b"]) == 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.integers(0, 3))
def test_whole_groups_compete_with_their_units(seed, fraction, minimum):
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(6, generator=generator).double() for name in "ab"} | {"n": torch.rand(20).double()}
    costs = torch.tensor([0.0, *(5 + 2.0 * n for n in range(1, 7))]).double()  # 3 groups, 5 / 3 each beside their units
    grouped = Bounds(costs, minimum, 3, groups=3, group_cost=5 / 3)
    bounds = {"a": grouped, "b": grouped, "n": Bounds.linear(1.0, 20, 0, 4, True)}
    least, most = least_cost(bounds), 2 * 17 + 20
    budget = least + fraction * (most - least)
    kept = ALLOCATORS["global"](scores, bounds, budget)
    spent = float(len(kept["n"]))
    for name in "ab":
        by_group = [int(((kept[name] // 2) == group).sum()) for group in range(3)]
        left = [count for count in by_group if count]
        assert len(set(left)) <= 1
        assert sum(left) >= min(minimum, 6)
        spent += 2.0 * sum(left) + 5 / 3 * len(left)
        for group, count in enumerate(by_group):
            if count == 1:
                assert int(scores[name].reshape(3, 2)[group].argmax()) == int(kept[name][kept[name] // 2 == group]) % 2
    assert spent <= budget * (1 + 1e-9) + 1e-9
    assert budget - spent < 1 + 1e-9 or len(kept["n"]) == 20


def test_the_group_that_is_worth_least_goes_whole():
    scores = {"a": torch.tensor([5.0, 6, 0.1, 0.2, 7, 5])}
    bounds = {"a": Bounds(torch.arange(7).double(), 1, 3, groups=3, group_cost=0.0)}
    assert ALLOCATORS["global"](scores, bounds, 4.0)["a"].tolist() == [0, 1, 4, 5]
    assert ALLOCATORS["global"](scores, bounds, 2.0)["a"].tolist() == [1, 4]
