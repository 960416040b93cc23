"""The smallest budget that keeps the quality: bisection over budgets, all cut from one plan.

Between the least that the bounds allow, which is taken to fail, and the most, which keeps all, the middle is tried: cut
and repaired as it would be in the end, and measured on rows that nothing else has seen. Where it keeps the share that
is asked it is the new upper end, else the new lower one; n tries leave 1 / 2^n of the range.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from niwaki.errors import RequestError
from niwaki.evaluate import measures_of, quality
from niwaki.evaluate.plain import plain_model
from niwaki.evaluate.quality import share_kept
from niwaki.methods.plan import Plan
from niwaki.numerics.decimals import reaches, shown_most
from niwaki.observe import Passes
from niwaki.progress import say
from niwaki.results import StageResult
from niwaki.train.data import TrainingData

Apply = Callable[[nn.Module, Plan], StageResult]
"""Carries a plan out on a model, in place."""


@dataclass(frozen=True)
class Goal:
    """What is to be kept of which metric (None is the usual one of the task), on which rows, in how many tries."""

    share: float
    tries: int
    held_out: TrainingData
    metric: str | None = None


def keep_quality_(model: nn.Module, plan: Plan, goal: Goal, apply_: Apply, *, progress: bool = False) -> StageResult:
    """Prune `model` in place by the smallest budget of those tried that keeps what is asked; `details` has the tries.

    Raises:
        RequestError: rows without labels, a metric of another kind of model; no try kept enough, with the nearest.
        WorkError: as pruning.
    """
    started, found = time.perf_counter(), quality(plain_model(model), goal.held_out, goal.metric, progress)
    metric = next(name for name in measures_of(model)[0] if name in found)
    dense = found[metric]
    tried: list[dict[str, Any]] = []
    (low, high), passes = plan.span, plan.passes
    for number in range(1, goal.tries + 1):
        part = (low + high) / 2
        candidate = copy.deepcopy(model)
        done = apply_(candidate, plan.keeping(part))
        passes += Passes(done.forward_passes, done.backward_passes)
        value = quality(plain_model(candidate), goal.held_out, metric, progress)[metric]
        share = share_kept(metric, dense, value)
        kept = reaches(share, goal.share)
        low, high = (low, part) if kept else (part, high)
        tried.append({done.kind: done.requested, metric: value, "share": share, "kept": kept})
        verdict = "kept" if kept else "not kept"
        what = f"{done.kind} {done.requested:.4f}, {metric} {value:.4f} of {dense:.4f}"
        say(f"keep-quality: try {number} of {goal.tries}: {what}: {goal.share:g} {verdict}", not progress)
    if not any(each["kept"] for each in tried):
        best = max(tried, key=lambda each: each["share"])
        rule = f"keep_quality must be at most {shown_most(best['share']):.4f}, the most that {goal.tries} tries kept"
        raise RequestError(f"{rule} (more tries cut less), got {goal.share:g}")
    done = apply_(model, plan.keeping(high))
    passes += Passes(done.forward_passes, done.backward_passes)
    search = {"share": goal.share, "metric": metric, "dense": dense, "rows": _rows(goal.held_out), "tries": tried}
    return dataclasses.replace(
        done,
        seconds=time.perf_counter() - started,
        forward_passes=passes.forward,
        backward_passes=passes.backward,
        details={**done.details, "keep_quality": search},
    )


def _rows(batches: TrainingData) -> int:
    return sum(len(batch["input_ids"]) for batch in batches)
