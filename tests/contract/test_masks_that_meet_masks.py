"""A model that holds masks already: every zero stays, the budget is met, and what is refitted is fitted under them."""

from __future__ import annotations

import copy

import pytest
import torch

import niwaki
from niwaki.adapters import mask_of, masks_of
from niwaki.allocation.sparsity import LinearProfile, whole_blocks
from niwaki.anatomy import linears_of, weight_of
from niwaki.config.patterns import Block, NByM, Unstructured, parse_pattern
from niwaki.masks import choose
from niwaki.repair.least_squares import Optimum, on_mask
from tiny import batches, logits, tiny, with_lora

SECOND = [("2:4", 0.5), ("4:8", 0.5), ("4x1", 0.7), ("1x4", 0.7), ("8x8", 0.8), ("unstructured", 0.7)]
SOLVES = [(score, "least-squares") for score in ("alps", "sparsegpt", "magnitude")]
SOLVES += [("sparsegpt", "none"), ("wanda", "none")]


@pytest.fixture(scope="module")
def masked():
    model = with_lora(tiny(layers=2))
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.6, weight_score="magnitude", repair="none"), batches())
    return model


@pytest.mark.parametrize(("score", "repair"), SOLVES)
@pytest.mark.parametrize(("pattern", "sparsity"), SECOND)
def test_no_zero_comes_back_and_the_budget_is_met(pattern, sparsity, score, repair, masked):
    model = copy.deepcopy(masked)
    before = masks_of(model)
    config = niwaki.LayerAdaptive(sparsity=sparsity, pattern=pattern, weight_score=score, repair=repair)
    result = niwaki.prune_(model, config, batches())
    after, kind = masks_of(model), parse_pattern(pattern)
    assert all(bool((before[name] | ~mask).all()) for name, mask in after.items())
    total = sum(mask.numel() for mask in after.values())
    zeros = sum(int((~mask).sum()) for mask in after.values())
    assert result.details["zeros"] == zeros
    assert result.achieved == zeros / total
    if isinstance(kind, NByM):
        assert all(int(mask.reshape(-1, kind.m).sum(1).max()) <= kind.n for mask in after.values())
        assert any(f"{result.achieved:.4f}" in warning for warning in result.warnings)
    else:
        unit = kind.rows * kind.columns if isinstance(kind, Block) else 1
        assert 0 <= round(sparsity * total) - zeros < unit


@pytest.mark.parametrize("sparsity", [0.35, 0.6, 0.9799])
@pytest.mark.parametrize("pattern", ["4x1", "1x4", "8x4"])
@pytest.mark.parametrize("allocation", ["search", "uniform", "erk"])
def test_blocks_miss_the_budget_by_less_than_one_block(pattern, sparsity, allocation):
    model, kind = tiny(), parse_pattern(pattern)
    result = niwaki.prune_(
        model, niwaki.LayerAdaptive(sparsity=sparsity, pattern=pattern, allocation=allocation), batches()
    )
    missing = round(sparsity * result.details["weights"]) - result.details["zeros"]
    assert 0 <= missing < kind.rows * kind.columns


def test_no_carry_is_lost_when_counts_become_whole_blocks():
    profiles = {f"l{i}": LinearProfile((8, 5 + i)) for i in range(7)}
    zeros = {name: 4 * (profile.size // 4) - 3 for name, profile in profiles.items()}
    found = whole_blocks(zeros, 4, profiles)
    assert all(count % 4 == 0 and count <= profiles[name].size for name, count in found.items())
    assert sum(found.values()) == sum(zeros.values()) // 4 * 4


@pytest.mark.parametrize("sparsity", [0.98, 0.985, 0.999])
def test_a_sparsity_above_the_default_bound_is_met(sparsity):
    result = niwaki.prune_(tiny(), niwaki.LayerAdaptive(sparsity=sparsity, allocation="uniform"), batches())
    assert result.details["zeros"] == round(sparsity * result.details["weights"])


def test_a_block_with_zeros_in_it_is_worth_what_is_left_of_it():
    scores = torch.tensor([[1.0, 5.0, 9.0, 9.0], [1.0, 5.0, 9.0, 9.0]])
    before = torch.ones(2, 4, dtype=torch.bool)
    before[0, 3] = False  # the dearest block: one of its weights has gone
    kept = choose(scores, 3, Block(2, 1), "here", before=before)
    assert kept.tolist() == [[False, True, True, False], [False, True, True, True]]


@pytest.mark.parametrize("zeros", [6, 7, 9, 12])
def test_rows_are_as_even_as_what_is_zero_already_lets_them_be(zeros):
    before = torch.ones(3, 4, dtype=torch.bool)
    before[0, :3] = False
    kept = choose(torch.rand(3, 4), zeros, Unstructured(), "here", before=before, by_row=True)
    counts = (~kept).sum(1).tolist()
    assert sum(counts) == zeros
    assert counts[0] == max(3, round(zeros / 3 - 0.1))
    assert abs(counts[1] - counts[2]) <= 1
    assert not kept[~before].any()


@pytest.mark.parametrize("family", ["distilbert", "gpt2"])
def test_what_is_left_of_a_masked_model_is_fitted_under_its_masks(family):
    distances = {}
    dense, data = tiny(family), batches(count=1, rows=96, family=family)
    niwaki.prune_(dense, niwaki.LayerAdaptive(sparsity=0.7, weight_score="magnitude", repair="none"), data)
    for repair in ("none", "least-squares"):
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.7, repair=repair), data)
        for linear in linears_of(model):
            mask = mask_of(linear.module)
            assert mask is not None
            assert not (mask * weight_of(linear.module))[~mask].any()
        distances[repair] = sum(float((logits(model, b) - logits(dense, b)).square().mean()) for b in data)
    assert distances["least-squares"] < 0.7 * distances["none"]


def test_under_a_mask_the_weight_is_the_exact_least_squares_of_each_row():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, generator=generator).double()
    moments = x.T @ x + torch.eye(12).double()
    best = torch.randn(5, 12, generator=generator).double()
    mask = torch.rand(5, 12, generator=generator) < 0.5
    mask[0] = False
    optimum = Optimum(best, None, torch.linalg.cholesky(moments), torch.zeros(12).double(), 0.01)
    found = on_mask(optimum, mask)
    assert not found[~mask].any()
    for row in range(5):
        inside = mask[row]
        wanted = torch.linalg.solve(moments[inside][:, inside], moments[inside] @ best[row])
        torch.testing.assert_close(found[row, inside], wanted, rtol=1e-4, atol=1e-5)
