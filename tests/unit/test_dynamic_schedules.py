"""Schedules of dynamic sparsity: pure functions, whole updates, and a target that is reached or refused."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.config import Recipe
from niwaki.config.by_name import by_name
from niwaki.config.dynamic import DROPS, FRACTIONS, GROWS, SCHEDULES
from niwaki.data import Table
from niwaki.methods.dynamic import fractions, plan_schedule, sparsities
from niwaki.methods.dynamic.schedules import SHARES, SPARSITIES
from niwaki.methods.dynamic.scores import DROP_SCORERS, GROW_SCORERS
from niwaki.run.checks import check_recipe
from niwaki.run.inputs import Inputs
from niwaki.run.rows import Cut
from niwaki.run.work import cut_rows
from tiny import tiny


def test_every_name_has_its_function_and_every_function_its_name():
    for names, module in ((SCHEDULES, sparsities), (FRACTIONS, fractions)):
        public = {name.replace("_", "-") for name, value in vars(module).items() if inspect.isfunction(value)}
        assert public == set(names) == set(by_name(names, module))
    assert set(DROP_SCORERS) == set(DROPS)
    assert {*GROW_SCORERS, "none"} == set(GROWS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_sparsity_rises_to_exactly_the_target(name):
    for start, target in ((0.0, 0.9), (0.1, 0.7), (0.3, 0.3), (1 / 3, 2 / 3)):
        values = [SPARSITIES[name](i / 20, start, target) for i in range(21)]
        assert values == sorted(values)
        assert values[-1] == target
        assert values[0] == pytest.approx(target if name == "constant" else start)


def test_cubic_and_cosine_are_the_published_ones():
    assert SPARSITIES["cubic"](0.5, 0.0, 0.8) == pytest.approx(0.8 - 0.8 * 0.125)
    assert SHARES["cosine"](0.0, 0.3) == pytest.approx(0.3)
    assert SHARES["cosine"](0.5, 0.3) == pytest.approx(0.15)
    assert SHARES["cosine"](1.0, 0.3) == pytest.approx(0.0)
    assert SHARES["inverse-power"](0.5, 0.4) == pytest.approx(0.05)
    assert SHARES["constant"](0.9, 0.4) == 0.4


def test_updates_come_at_the_interval_and_stop():
    schedule = plan_schedule(
        niwaki.DynamicSparsityConfig(sparsity=0.8, interval=10, warmup=0.1, reach=0.5, stop=0.75, window=3), 100
    )
    assert list(schedule.updates) == [20, 30, 40, 50, 60, 70]
    assert schedule.last == 70
    assert [schedule.sparsity(t) for t in (0, 10, 19)] == [0.0] * 3
    assert schedule.sparsity(20) == schedule.sparsity(29) < schedule.sparsity(30)
    assert all(schedule.sparsity(t) == 0.8 for t in range(50, 101))
    assert schedule.sparsity(49) < 0.8
    assert [t for t in range(1, 101) if schedule.captures(t)] == [
        t for u in schedule.updates for t in (u - 2, u - 1, u)
    ]


def test_numbers_above_one_are_steps():
    by_steps = plan_schedule(niwaki.DynamicSparsityConfig(sparsity=0.5, interval=5, warmup=10, reach=40, stop=60), 100)
    by_share = plan_schedule(
        niwaki.DynamicSparsityConfig(sparsity=0.5, interval=5, warmup=0.1, reach=0.4, stop=0.6), 100
    )
    assert [by_steps.sparsity(t) for t in range(101)] == [by_share.sparsity(t) for t in range(101)]


def test_nothing_is_replaced_where_nothing_grows():
    schedule = plan_schedule(niwaki.DynamicSparsityConfig(sparsity=0.5, interval=5, grow="none"), 100)
    assert not any(schedule.replaced(t) for t in schedule.updates)


def test_a_target_that_is_not_reached_says_the_steps_needed():
    config = niwaki.DynamicSparsityConfig(sparsity=0.8, interval=100, reach=0.5, stop=0.75)
    with pytest.raises(niwaki.RequestError, match=r"sparsity 0\.8 .*at least 134 steps.*got 60"):
        plan_schedule(config, 60)
    assert plan_schedule(config, 134).reaches
    with pytest.raises(niwaki.RequestError, match="no number of steps"):
        plan_schedule(niwaki.DynamicSparsityConfig(sparsity=0.8, interval=10, reach=500, stop=400), 60)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_a_training_in_which_no_weight_could_return_is_refused(pattern):
    config = niwaki.DynamicSparsityConfig(sparsity=0.5, pattern=pattern, schedule="constant", interval=25)
    for steps in (1, 20, 28):
        with pytest.raises(niwaki.RequestError, match=rf"weights must return .*at least \d+ steps .*got {steps}"):
            plan_schedule(config, steps)
    still = niwaki.DynamicSparsityConfig(sparsity=0.5, pattern=pattern, schedule="constant", grow="none")
    for steps in range(1, 40):
        schedule = plan_schedule(still, steps)
        assert [schedule.sparsity(step) for step in range(steps + 1)] == [0.5] * (steps + 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity.*\[0, 1\).*got 1"),
        ({"sparsity": -0.1}, r"sparsity.*got -0\.1"),
        ({"sparsity": float("nan")}, "sparsity.*nan"),
        ({"sparsity": 0.5, "interval": 0}, "interval must be at least 1, got 0"),
        ({"sparsity": 0.5, "window": 0}, "window must be at least 1"),
        ({"sparsity": 0.5, "start_sparsity": 0.6}, r"start_sparsity must be in \[0, 0\.5\], got 0\.6"),
        ({"sparsity": 0.5, "max_sparsity": 0.4}, r"max_sparsity must be in \[0\.5, 1\], got 0\.4"),
        ({"sparsity": 0.5, "update_fraction": 1.5}, r"update_fraction must be in \[0, 1\], got 1\.5"),
        ({"sparsity": 0.5, "smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1"),
        ({"sparsity": 0.5, "drop": "magnitud"}, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "grow": "gradients"}, "did you mean 'gradient'"),
        ({"sparsity": 0.5, "stop": 0.0}, "stop must be above 0"),
        ({"sparsity": 0.6, "pattern": "2:4"}, r"sparsity must be 0\.5 for pattern 2:4, got 0\.6"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "schedule must be constant for pattern 2:4, got 'cubic'"),
    ],
)
def test_wrong_requests(options, words):
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.DynamicSparsityConfig(**options)
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.DynamicSparsity(**options)


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"schedule": "constant", "start_sparsity": 0.1}, "start_sparsity"),
        ({"schedule": "constant", "reach": 0.5}, "reach"),
        ({"allocation": "erk"}, "allocation"),
        ({"grow": "none", "update_fraction": 0.2}, "update_fraction"),
        ({"grow": "none", "fraction_schedule": "constant"}, "fraction_schedule"),
        ({"grow": "none", "returns": "zero"}, "returns"),
        ({"grow": "none", "schedule": "constant", "interval": 5}, "interval"),
        ({"grow": "none", "schedule": "constant", "drop": "magnitude"}, "drop"),
        ({"drop": "magnitude", "grow": "gradient", "smoothing": 0.5}, "smoothing"),
        ({"drop": "magnitude", "grow": "momentum", "uncertainty": 0.5}, "uncertainty"),
        ({"drop": "magnitude", "grow": "random", "window": 5}, "window"),
        ({"pattern": "2:4", "schedule": "constant", "reallocation": "within"}, "reallocation"),
        ({"pattern": "2:4", "schedule": "constant", "max_sparsity": 0.9}, "max_sparsity"),
    ],
)
def test_an_option_that_nothing_looks_at_is_refused(options, unused):
    for config in (niwaki.DynamicSparsityConfig, niwaki.DynamicSparsityTraining, niwaki.DynamicSparsity):
        with pytest.raises(niwaki.RequestError, match=f"{unused} must not be given with .* does not look at it"):
            config(sparsity=0.5, **options)
    with pytest.raises(niwaki.RequestError, match="returns must not be given with LoRA"):
        niwaki.DynamicSparsityTraining(sparsity=0.5, returns="zero")


@pytest.mark.parametrize(
    "options",
    [
        {"drop": "magnitude", "grow": "momentum", "smoothing": 0.5, "window": 5},
        {"drop": "magnitude", "grow": "saliency", "smoothing": 0.5, "uncertainty": 0.5},
        {"schedule": "constant", "allocation": "erk", "warmup": 0.1, "stop": 0.5},
        {"start_sparsity": 0.1, "allocation": "erk"},
        {"reallocation": "within", "allocation": "erk"},
        {"grow": "none", "reach": 0.5, "window": 5},
    ],
)
def test_what_is_looked_at_may_be_given_and_replaced(options):
    for kind in (niwaki.DynamicSparsityConfig, niwaki.DynamicSparsityTraining):
        config = kind(sparsity=0.5, **options)
        assert dataclasses.replace(config) == config
        assert dataclasses.replace(config, sparsity=0.99).highest == 0.99


def test_an_unknown_option_is_refused():
    with pytest.raises(niwaki.RequestError, match=r"options must be sparsity and any of .*got sparsity, dropp"):
        niwaki.DynamicSparsity(sparsity=0.5, dropp="magnitude")


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 16), ({"gradient_accumulation": 4}, 4), ({"gradient_accumulation": 3}, 6), ({"early_stopping": 1}, 14)],
)
@pytest.mark.parametrize("before", [(), (niwaki.Structured(flops=0.9),)])
def test_a_recipe_is_refused_where_its_training_has_too_few_steps(options, steps, before):
    """Of 16 batches: steps take several at a time, and of an eighth none is made."""
    table = Table("memory", None, 64, ("text",), "label", [("a good film",)] * 64, [0, 1] * 32)
    model = tiny(labels=2)
    inputs = Inputs(model, tiny_tokenizer(), 4, Cut(8), quiet=True)

    def check(needed):
        # The one update is at the last step, by which the sparsity is to be reached.
        stage = niwaki.DynamicSparsityTraining(
            sparsity=0.5, epochs=1, interval=needed, reach=float(needed), stop=float(needed), **options
        )
        recipe = Recipe(model="m", out="o", train_data="t", eval_data="e", stages=(*before, stage))
        check_recipe(cut_rows(recipe, inputs, table, table))

    check(steps)
    with pytest.raises(niwaki.RequestError, match=f"at least {steps + 1} steps are needed, got {steps}"):
        check(steps + 1)
