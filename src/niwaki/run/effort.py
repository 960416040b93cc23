"""What the steps of a recipe take, as forward passes over tokens: a rough guess, for the time that is left."""

from __future__ import annotations

from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Stage, Structured
from niwaki.data import mean_length
from niwaki.run.pass_memory import timed_tokens
from niwaki.run.work import Work

_BACKWARD = 3
"""Forward passes that one takes together with the way back."""
_PRUNING = {Structured: 15, LayerAdaptive: 24}
"""Forward passes over the calibration rows; `cost` in docs/measured.md is a third of it."""
_TIMINGS = 36
"""Passes of the largest batch that is timed: 18 rounds of two models; of smaller ones they are little beside it."""


def step_costs(work: Work, dense_known: bool) -> list[float]:
    """For each stage the measuring before it and itself, and the measuring and timing at the end."""
    tests = mean_length(work.tests) * len(work.test_rows) if work.test_rows else 0.0
    costs = [cost for stage in work.recipe.stages for cost in (tests, _stage_cost(work, stage))]
    if dense_known:
        costs[0] = 0.0
    return [*costs, tests + _TIMINGS * timed_tokens(work.model, max(1, round(work.length)))]


def _stage_cost(work: Work, stage: Stage) -> float:
    seen = work.length * sum(len(batch["input_ids"]) for batch in work.calibration)
    learned = work.length * len(work.training.rows)
    match stage:
        case Finetune():
            return _BACKWARD * stage.epochs * learned
        case DynamicSparsityTraining():
            return (_BACKWARD + (stage.teacher != "none")) * stage.epochs * learned
        case Structured() | LayerAdaptive():
            tries = 1 if stage.keep_quality is None else stage.tries + 1
            recovery = (_BACKWARD + 1) * stage.recover_epochs * learned
            return stage.steps * (_PRUNING[type(stage)] * seen + recovery) * tries
        case _:
            return 0.0
