"""Fractions are those that people write: exact shares are exact, and a bound that is named is itself accepted."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import niwaki
from niwaki import LayerAdaptive, Structured
from niwaki.allocation.sparsity import LinearProfile, check_budget
from niwaki.config import Training
from niwaki.config.sweep import parse_pick
from niwaki.errors import RequestError
from niwaki.methods import keep_quality
from niwaki.methods.dynamic.schedules import plan_schedule
from niwaki.numerics.decimals import reaches, shown_least, shown_most, whole_part
from niwaki.run.sweep.summary import picked
from niwaki.train.loop import _schedule
from tiny import batches, tiny

DATA, HELD = batches(3), batches(2, rows=8, seed=5)


def test_a_share_of_steps_is_as_many_as_people_count():
    for steps in (100, 1000, 10_000):
        assert [whole_part(k / steps, steps) for k in range(steps + 1)] == list(range(steps + 1))
    assert whole_part(0.299, 100) == 29
    assert int(0.29 * 100) == 28  # what it would be without


@pytest.mark.parametrize("part", [0.07, 0.29, 0.57, 0.58])
def test_masks_and_rates_begin_reach_and_stop_where_it_is_asked(part):
    step = round(100 * part)
    shares = niwaki.DynamicSparsityConfig(sparsity=0.5, interval=1, reach=part, stop=part, grow="none")
    assert plan_schedule(shares, 100).last == step
    late = niwaki.DynamicSparsityConfig(sparsity=0.5, interval=1, warmup=part, reach=0.9, stop=0.9)
    assert plan_schedule(late, 100).updates[0] == step + 1
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = _schedule(optimizer, 100, Training(learning_rate_warmup=part)), []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates.index(1.0) == step


def test_what_is_just_as_much_as_asked_is_enough():
    for rows in (16, 40, 872):
        for dense in range(1, rows + 1):
            for kept in range(1, dense + 1):
                assert reaches((kept / rows) / (dense / rows), kept / dense)
                assert reaches(kept / rows, (kept / dense) * (dense / rows))
    assert not reaches(0.8985, 0.899)


def test_a_point_or_a_try_that_keeps_just_what_is_asked_is_taken(monkeypatch):
    """0.75 of an accuracy of 0.8 is 0.6000000000000001 to a computer; 0.6 of it, 0.7499999999999999."""
    point = {"params": 1, "flops": 10, "size_bytes": 1, "zeros": 0, "dense_flops": 20, "fidelity": {"kl": 0.0}}
    found = {"dense": point | {"quality": {"accuracy": 0.8}}, "points": [point | {"quality": {"accuracy": 0.6}}]}
    found["points"][0]["name"] = "it"
    assert picked(parse_pick("accuracy >= 0.75 * dense"), found) == "it"
    with pytest.raises(RequestError, match="the nearest is it"):
        picked(parse_pick("accuracy >= 0.751 * dense"), found)
    measured = iter([0.8, 0.6, 0.6])
    monkeypatch.setattr(keep_quality, "quality", lambda *_: {"accuracy": next(measured)})
    asked = LayerAdaptive(keep_quality=0.75, tries=2, weight_score="magnitude", allocation="uniform", repair="none")
    done = niwaki.prune_(tiny(), asked, DATA, held_out=HELD)
    assert [each["kept"] for each in done.details["keep_quality"]["tries"]] == [True, True]


def test_a_bound_that_is_named_is_one_that_is_accepted():
    assert (shown_least(0.33333), shown_least(0.5), shown_least(0.98)) == (0.3334, 0.5, 0.98)
    assert (shown_most(0.66666), shown_most(0.5), shown_most(0.98)) == (0.6666, 0.5, 0.98)
    profiles = {"a": LinearProfile((300, 1000), low=1 / 3, high=2 / 3)}
    for zeros, place in ((0, 0), (300_000, 1)):
        with pytest.raises(RequestError) as refused:
            check_budget(profiles, zeros)
        named = re.findall(r"must be (\S+) to (\S+) with", str(refused.value))[0][place]
        check_budget(profiles, round(float(named) * 300_000))


def test_the_quality_that_is_named_as_the_most_is_found(monkeypatch):
    """A share of 0.98776 was told as 0.9878, which is more than there is."""
    asked = Structured(keep_quality=0.999, tries=1, head_score="random", neuron_score="random", repair="none")

    def searched(share):
        measured = iter([1.0, 0.98776])
        monkeypatch.setattr(keep_quality, "quality", lambda *_: {"accuracy": next(measured)})
        config = Structured(**{**vars(asked), "keep_quality": share})
        return niwaki.prune_(tiny(), config, DATA, held_out=HELD)

    with pytest.raises(RequestError, match=r"must be at most 0\.9877, the most that 1 tries kept") as refused:
        searched(0.999)
    named = float(re.findall(r"at most (\S+),", str(refused.value))[0])
    assert searched(named).details["keep_quality"]["tries"][0]["kept"]
