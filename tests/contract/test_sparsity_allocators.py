"""What every allocator of zeros owes: the budget to one weight, the bounds; and the seed's formula, exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import niwaki
from niwaki.allocation.sparsity import (
    SPARSITY_ALLOCATORS,
    LinearProfile,
    check_budget,
    inverse_shape,
    towards_uniform,
    water_fill,
)
from niwaki.config.layer_adaptive import SPARSITY_ALLOCATIONS


def profiles_of(seed, count, low, high, equal_sizes=False):
    generator = torch.Generator().manual_seed(seed)
    profiles = {}
    for number in range(count):
        shape = (16, 16) if equal_sizes else tuple(torch.randint(2, 30, (2,), generator=generator).tolist())
        weights = torch.randn(shape, generator=generator)
        losses = torch.rand(3, generator=generator).double().sort().values.tolist()
        profiles[f"l{number}"] = LinearProfile(
            shape=shape,
            low=low,
            high=high,
            importance=float(torch.rand((), generator=generator)),
            scores=weights.abs(),
            weights=weights,
            curve=tuple(zip((0.0, 0.5, 0.9, 1.0), [0.0, *losses], strict=True)),
        )
    return profiles


def test_names_are_the_configured_ones():
    assert set(SPARSITY_ALLOCATORS) == set(SPARSITY_ALLOCATIONS)


@pytest.mark.parametrize("name", SPARSITY_ALLOCATORS)
@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 9), st.floats(0, 0.4), st.floats(0.5, 1), st.floats(0, 1), st.floats(0.2, 3)
)
def test_the_budget_is_met_to_one_weight_inside_the_bounds(name, seed, count, low, high, fraction, power):
    profiles = profiles_of(seed, count, low, high)
    least, most = (sum(getattr(profile, end) for profile in profiles.values()) for end in ("fewest", "most"))
    zeros = round(least + fraction * (most - least))
    check_budget(profiles, zeros)
    found = SPARSITY_ALLOCATORS[name](profiles, zeros, power)
    assert sum(found.values()) == zeros
    assert all(profile.fewest <= found[key] <= profile.most for key, profile in profiles.items())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.floats(0.05, 0.95), st.floats(0.2, 3))
def test_zeros_are_ordered_by_importance(seed, count, sparsity, power):
    profiles = profiles_of(seed, count, 0.0, 1.0, equal_sizes=True)
    found = SPARSITY_ALLOCATORS["inverse-importance"](profiles, round(sparsity * count * 256), power)
    ordered = sorted(profiles, key=lambda name: profiles[name].importance)
    assert all(found[a] >= found[b] - 1 for a, b in itertools.pairwise(ordered))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.floats(0.2, 3), st.floats(0.01, 0.9))
def test_unclipped_and_of_equal_sizes_it_is_the_seed_s_code(values, power, amount):
    importances = np.array(values) / max(values)
    raised = importances**power
    if np.ptp(importances) < 1e-6 or (1 - raised).sum() < 1e-6:
        return
    expected = amount * (1 - raised) / np.sum(1 - raised) * len(values)
    if expected.max() > 1:
        return
    n = np.full(len(values), 100.0)
    found = water_fill(inverse_shape(np.array(values), power), n, np.zeros(len(n)), np.ones(len(n)), amount * n.sum())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.floats(0.05, 0.95), st.floats(0, 1))
def test_the_strength_lies_between_uniform_and_the_formula(seed, count, fraction, strength):
    profiles = profiles_of(seed, count, 0.1, 0.9)
    least, most = (sum(getattr(profile, end) for profile in profiles.values()) for end in ("fewest", "most"))
    zeros = round(least + fraction * (most - least))
    ends = [SPARSITY_ALLOCATORS[name](profiles, zeros, 1.0) for name in ("uniform", "inverse-importance")]
    assert towards_uniform(ends[1], profiles, 0.0) == ends[0]
    assert towards_uniform(ends[1], profiles, 1.0) == ends[1]
    found = towards_uniform(ends[1], profiles, strength)
    assert sum(found.values()) == zeros
    for name, profile in profiles.items():
        low, high = sorted(end[name] for end in ends)
        assert max(low - 1, profile.fewest) <= found[name] <= min(high + 1, profile.most)


@pytest.mark.parametrize("name", ["inverse-importance", "uniform"])
def test_equal_importances_are_uniform(name):
    profiles = {f"l{i}": LinearProfile((10, 10 * (i + 1)), importance=0.3) for i in range(3)}
    assert SPARSITY_ALLOCATORS[name](profiles, 300, 2.0) == {"l0": 50, "l1": 100, "l2": 150}


def test_what_bounds_cut_off_is_redistributed():
    profiles = {f"l{i}": LinearProfile((10, 10), high=0.6, importance=i) for i in range(3)}
    found = SPARSITY_ALLOCATORS["inverse-importance"](profiles, 150, 1.0)
    assert found == {"l0": 60, "l1": 60, "l2": 30}


def test_a_budget_out_of_bounds_says_the_range():
    profiles = {"a": LinearProfile((10, 10), low=0.2, high=0.6)}
    with pytest.raises(niwaki.RequestError, match=r"0\.2 to 0\.6 with.*got 0\.7"):
        check_budget(profiles, 70)


def test_global_takes_the_lowest_of_all():
    scores = {"a": torch.tensor([[1.0, 9.0]]), "b": torch.tensor([[2.0, 3.0]])}
    profiles = {name: LinearProfile((1, 2), scores=value) for name, value in scores.items()}
    assert SPARSITY_ALLOCATORS["global"](profiles, 3, 1.0) == {"a": 1, "b": 2}


def test_search_takes_from_the_flattest_curve():
    profiles = {
        "flat": LinearProfile((10, 10), curve=((0.0, 0.0), (1.0, 1.0))),
        "steep": LinearProfile((10, 10), curve=((0.0, 0.0), (1.0, 100.0))),
    }
    found = SPARSITY_ALLOCATORS["search"](profiles, 100, 1.0)
    assert found["flat"] > 90
