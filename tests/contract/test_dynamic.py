"""What every drop, grow, pattern, schedule and reallocation owes: exact counts at every step, zeros that stay zeros."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import niwaki
from niwaki.adapters import effective_weight, masks_of
from niwaki.anatomy import linears_of, weight_of
from niwaki.config.dynamic import DROPS, GROWS, REALLOCATIONS, SCHEDULES
from niwaki.config.layer_adaptive import SPARSITY_ALLOCATIONS
from niwaki.masks import NByM, lowest
from niwaki.methods.dynamic.reallocate import across, in_groups, lowest_of, swap, within
from niwaki.methods.dynamic.scores import shuffle
from tiny import ROWS, batches, tiny, transposed, with_lora

TOTAL = 3 * (4 * 32 * 32 + 2 * 32 * 48)
STEPS = 12


def trained(model, optimizer=None, steps=STEPS, check=None, family="distilbert", **options):
    """A few steps of training under a moving mask; `check` is called after every step."""
    usual = {"sparsity": 0.7, "interval": 2, "stop": 0.9}
    if options.get("schedule") != "constant":
        usual["reach"] = 0.6
    if options.get("drop") != "magnitude" or options.get("grow") not in ("random", "none"):
        usual["window"] = 2
    options = {**usual, **options}
    torch.manual_seed(0)
    model.train()
    optimizer = optimizer or torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1
    )
    data = batches(family=family)
    controller = niwaki.DynamicSparsity(**options).attach(model, optimizer, steps, data=data)
    for batch in itertools.islice(itertools.cycle(data), steps):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        before = {name: mask.clone() for name, mask in controller.masks.items()}
        rows = controller.step()
        if check:
            check(model, controller, before, rows)
    controller.finish()
    return controller


def exact(model, controller, before, rows):
    """The invariants of every step."""
    masks = controller.masks
    assert controller.zeros == controller.scheduled(controller.done)
    for linear in linears_of(model):
        mask = masks[linear.name]
        assert (effective_weight(linear.module)[~mask] == 0).all()
        if not rows:
            assert torch.equal(mask, before[linear.name])
    for row in rows:
        was, now = before[row.linear], masks[row.linear]
        assert row.dropped == int((was & ~now).sum())
        assert row.grown == int((now & ~was).sum())
        assert row.step == controller.done
    assert bool(rows) == (controller.done in controller.schedule.updates)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("grow", GROWS)
@pytest.mark.parametrize("lora", [True, False])
def test_counts_are_exact_and_zeros_are_zero_at_every_step(drop, grow, lora):
    model = with_lora(tiny()) if lora else tiny()
    controller = trained(model, check=exact, drop=drop, grow=grow)
    assert controller.zeros == round(0.7 * TOTAL)
    grown = sum(row.grown for row in controller.history)
    assert grown == 0 if grow == "none" else grown > 0


@pytest.mark.parametrize("reallocation", REALLOCATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "2x8"])
def test_patterns_schedules_and_reallocations(reallocation, schedule, pattern):
    controller = trained(
        with_lora(tiny()), check=exact, reallocation=reallocation, schedule=schedule, pattern=pattern, sparsity=0.6
    )
    unit = 1 if pattern == "unstructured" else int(pattern[0]) * int(pattern[2])
    assert controller.zeros == round(0.6 * TOTAL) // unit * unit
    if unit > 1:
        r, c = int(pattern[0]), int(pattern[2])
        for mask in controller.masks.values():
            sums = mask.reshape(mask.shape[0] // r, r, mask.shape[1] // c, c).sum((1, 3))
            assert ((sums == 0) | (sums == unit)).all()
    if reallocation == "within" and pattern == "unstructured":
        assert all(abs(float((~mask).float().mean()) - 0.6) < 2e-3 for mask in controller.masks.values())


@pytest.mark.parametrize("reallocation", REALLOCATIONS)
@pytest.mark.parametrize(("pattern", "sparsity"), [("4x1", 0.98), ("16x16", 0.95)])
def test_blocks_go_up_to_the_highest_sparsity_of_a_linear(pattern, sparsity, reallocation):
    """At most 0.98 of each, to within one block: of whole blocks below that there are too few for so many zeros."""
    options = {"pattern": pattern, "sparsity": sparsity, "reallocation": reallocation, "steps": 6, "reach": 0.5}
    controller = trained(with_lora(tiny()), check=exact, **options)
    unit = 4 if pattern == "4x1" else 256
    assert controller.zeros == round(sparsity * TOTAL) // unit * unit
    assert all(int((~mask).sum()) < 0.98 * mask.numel() + unit for mask in controller.masks.values())


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_n_by_m_holds_in_every_group(pattern):
    n, m = int(pattern[0]), int(pattern[2])

    def check(model, controller, before, rows):
        exact(model, controller, before, rows)
        for mask in controller.masks.values():
            assert (mask.reshape(-1, m).sum(1) == n).all()

    controller = trained(
        with_lora(tiny()), check=check, pattern=pattern, sparsity=1 - n / m, schedule="constant", update_fraction=0.2
    )
    assert sum(row.grown for row in controller.history) > 0


@pytest.mark.parametrize("allocation", SPARSITY_ALLOCATIONS)
@pytest.mark.parametrize("reallocation", REALLOCATIONS)
def test_start_distributions(allocation, reallocation):
    def check(model, controller, before, rows):
        assert controller.zeros == controller.scheduled(controller.done)

    options = {"schedule": "constant", "allocation": allocation, "reallocation": reallocation}
    trained(with_lora(tiny()), check=check, steps=4, **options)


@pytest.mark.parametrize("family", ROWS)
def test_every_family(family):
    model = with_lora(tiny(family))
    if transposed(model):
        with pytest.raises(niwaki.RequestError, match="must store its weight"):
            trained(model, family=family)
        return
    trained(model, check=exact, steps=6, reach=0.5, family=family)


def test_a_start_from_masks_that_are_held():
    model = with_lora(tiny())
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, allocation="erk", weight_score="wanda"), batches())
    held = masks_of(model)
    options = {"sparsity": 0.5, "schedule": "constant", "reallocation": "within", "update_fraction": 0.2}
    controller = trained(copy.deepcopy(model), check=exact, **options)
    assert all(torch.equal(mask, controller.first[name]) for name, mask in held.items())
    assert all(int(mask.sum()) == int(controller.masks[name].sum()) for name, mask in held.items())
    risen = trained(copy.deepcopy(model), check=exact, sparsity=0.8)
    assert risen.schedule.start == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(niwaki.RequestError, match=r"sparsity must be at least the 0\.5000 the model holds, got 0\.3"):
        trained(copy.deepcopy(model), sparsity=0.3)
    with pytest.raises(niwaki.RequestError, match="schedule must rise"):
        trained(copy.deepcopy(model), sparsity=0.7, schedule="constant")
    with pytest.raises(niwaki.RequestError, match="pattern must be that of the masks"):
        trained(copy.deepcopy(model), sparsity=0.7, pattern="4x1")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_lowest_is_exact_whatever_the_ties(seed, share, tied, dtype):
    values = torch.rand(67, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values = (values * 3).round() if tied else values
    count = round(share * 67)
    order = values.float().argsort(stable=True)[:count]
    expected = torch.zeros(67, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(lowest(values, count), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 0.5), st.booleans())
def test_moves_are_exact(seed, density, share, tied):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 30, "b": 50, "c": 7}

    def draw():
        found = {name: torch.rand(1, size, generator=generator) for name, size in sizes.items()}
        return {name: (value * 4).round() if tied else value for name, value in found.items()}

    active = {name: value < density for name, value in draw().items()}
    now = sum(int(mask.sum()) for mask in active.values())
    drop, grow, kept = draw(), draw(), max(now - 3, 0)
    least = {name: min(2, int(mask.sum())) for name, mask in active.items()}
    kept = max(kept, sum(least.values()))
    new = across(active, drop, grow, kept, share, least)
    assert sum(int(mask.sum()) for mask in new.values()) == kept
    assert all(int(mask.sum()) >= least[name] for name, mask in new.items())
    for name, mask in new.items():  # the dropped are the lowest of the active, the grown the highest of the others
        gone, stayed = active[name] & ~mask, active[name] & mask
        if gone.any() and stayed.any() and int(mask.sum()) > least[name]:
            assert drop[name][gone].max() <= drop[name][stayed].min()
        came, left = mask & ~active[name], ~mask & ~active[name]
        if came.any() and left.any():
            assert grow[name][came].min() >= grow[name][left].max()
    each = {name: max(int(mask.sum()) - 1, 0) for name, mask in active.items()}
    new = within(active, drop, grow, each, share)
    assert {name: int(mask.sum()) for name, mask in new.items()} == each


def test_scores_of_one_kind_swap_only_for_the_better():
    active = {"a": torch.tensor([[True, True, True, False, False, False]])}
    scores = {"a": torch.tensor([[5.0, 4.0, 1.0, 2.0, 0.5, 0.0]])}
    for rule, kept, extra in ((within, {"a": 3}, ()), (across, 3, ({"a": 0},))):
        new = rule(active, scores, scores, kept, 1.0, *extra, alike=True)
        assert new["a"].tolist() == [[True, True, False, True, False, False]]


def test_shuffled_scores_stay_among_the_inactive():
    scores, active = torch.arange(40.0).reshape(4, 10), torch.rand(4, 10) < 0.5
    found = shuffle(scores, active, torch.Generator().manual_seed(0))
    assert torch.equal(found[active], scores[active])
    assert torch.equal(found[~active].sort().values, scores[~active].sort().values)
    assert not torch.equal(found, scores)


def test_the_budget_moves_to_where_scores_are_higher():
    active = {"poor": torch.ones(1, 40, dtype=torch.bool), "rich": torch.zeros(1, 40, dtype=torch.bool)}
    active["rich"][0, :5] = True
    drop = {"poor": torch.rand(1, 40), "rich": 1 + torch.rand(1, 40)}
    new = across(active, drop, drop, 45, 0.3, {"poor": 0, "rich": 0})
    assert int(new["rich"].sum()) == 5 + round(0.3 * 45)
    assert int(new["poor"].sum()) == 40 - round(0.3 * 45)


def test_counts_beyond_a_limit_go_to_the_others():
    scores = {"low": torch.zeros(10), "high": torch.ones(10)}
    for count, low, expected in ((8, 3, (3, 5)), (12, 10, (10, 2))):
        found = lowest_of(scores, count, {"low": low, "high": 10})
        assert (int(found["low"].sum()), int(found["high"].sum())) == expected


def test_what_was_just_dropped_does_not_grow():
    active = torch.tensor([[True, True, False, False]])
    new = swap(active, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[9.0, 9.0, 1.0, 2.0]]), 1, 1)
    assert new.tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("lora", [True, False])
def test_the_same_seed_gives_the_same_bytes(lora):
    models = [with_lora(tiny()) if lora else tiny() for _ in range(2)]
    for model in models:
        trained(model, grow="random")
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_pretrained_weight_is_never_touched_under_lora():
    model = with_lora(tiny())
    before = {linear.name: weight_of(linear.module).detach().clone() for linear in linears_of(model)}
    trained(model)
    for linear in linears_of(model):
        assert torch.equal(weight_of(linear.module), before[linear.name])


def test_of_groups_no_weight_returns_that_matters_less_than_what_it_replaces():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.55, 0.1]])
    active = torch.tensor([[1, 1, 0, 0]] * 3).bool()
    found = in_groups(active, scores, scores, NByM(2, 4), 0.5, alike=True)
    assert found.tolist() == torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0]]).bool().tolist()
    few = in_groups(active, scores, scores, NByM(2, 4), 0.17, alike=True)
    assert few.tolist() == torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]]).bool().tolist()
    other = in_groups(active, scores, scores, NByM(2, 4), 0.5)
    assert (other.sum(1) == 2).all()
    assert not torch.equal(other[0], active[0])
