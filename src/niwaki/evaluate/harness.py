"""Tasks of lm-evaluation-harness (EleutherAI; the extra `niwaki[tasks]`) on a model as it stands in memory.

The prompts, the number of shots and the metrics are the harness's own, so that figures compare with published ones.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import io
import logging
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from niwaki.anatomy import evaluation_mode, longest_input
from niwaki.errors import RequestError, WorkError
from niwaki.evaluate.multiple_choice import Mean
from niwaki.numerics.half import half_in_float32
from niwaki.progress import at_terminal

PACKAGE = "lm_eval"
BOOTSTRAP = 1000
"""Draws for the standard error of a metric that has no formula for it."""


def find_tasks(names: Sequence[str]) -> Any:
    """The harness's task manager, in which every name is a task (or a group or tag of tasks).

    Raises:
        RequestError: the harness is not installed, or a name that it does not know; the nearest are said.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        needed = f"tasks needs lm-evaluation-harness for {names[0]!r}, not installed"
        raise RequestError(f"{needed}; do: pip install niwaki[tasks] (a .jsonl file of questions needs nothing)")
    with _hushed(progress=False):
        manager = import_module(f"{PACKAGE}.tasks").TaskManager()
    known = list(manager.all_tasks)
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
            rule = "tasks must be .jsonl files or names that lm-evaluation-harness lists (lm-eval ls tasks)"
            raise RequestError(f"{rule}, got {name!r}{hint}")
    return manager


def harness_scores(
    model: nn.Module,
    tokenizer: Any,
    manager: Any,
    name: str,
    batch_size: int,
    limit: int | None = None,
    progress: bool = False,
) -> tuple[dict[str, Mean], dict[str, dict[str, Any]]]:
    """`task/metric` -> its mean, and what was measured: task -> the harness, its version of the task, rows, shots.

    The model, the tokenizer and the harness are afterwards as they were.

    Raises:
        WorkError: the harness failed: its data could not be read, most often.
    """
    evaluator: Any = import_module(f"{PACKAGE}.evaluator")
    models = import_module(f"{PACKAGE}.models.huggingface")
    try:
        with evaluation_mode(model), half_in_float32(model), _hushed(progress), _without_git(evaluator):
            wrapped = models.HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token, and a side to pad on
                batch_size=batch_size,
                max_length=longest_input(model),
            )
            found = evaluator.simple_evaluate(
                model=wrapped,
                tasks=[name],
                task_manager=manager,
                limit=limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=False,
                random_seed=None,  # the harness would set the seeds of the whole process
                numpy_random_seed=None,
                torch_random_seed=None,
            )
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise WorkError(f"tasks: {name!r} failed in lm-evaluation-harness: {type(error).__name__}: {line}") from error
    version = f"lm-eval {import_module(PACKAGE).__version__}"
    described = {
        task: {
            "path": task,
            "harness": version,
            "version": found["versions"].get(task),
            "rows": found["n-samples"][task]["effective"],
            "shots": found["n-shot"].get(task, 0),
        }
        for task in found["configs"]
    }
    return _means(found["results"]), described


def _means(results: dict[str, dict[str, Any]]) -> dict[str, Mean]:
    """The harness names a metric `acc,none` and its error `acc_stderr,none`; the filter is said where there is one."""
    means = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            name = f"{task}/{metric}" if kind == "none" else f"{task}/{metric},{kind}"
            means[name] = Mean(float(value), float(error) if isinstance(error, int | float) else None)
    return means


@contextlib.contextmanager
def _without_git(evaluator: Any) -> Iterator[None]:
    """While open, the harness does not run git for the commit of its results: git complains outside a repository."""
    name = "get_git_commit_hash"
    kept = getattr(evaluator, name, None)
    if kept is None:  # another version of the harness: it runs none
        yield
        return
    setattr(evaluator, name, lambda: None)
    try:
        yield
    finally:
        setattr(evaluator, name, kept)


@contextlib.contextmanager
def _hushed(progress: bool) -> Iterator[None]:
    """Without the harness's log and prints, and without its progress bars where no progress is asked for."""
    logs = [logging.getLogger(name) for name in (PACKAGE, "huggingface_hub")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    errors = contextlib.nullcontext() if progress and at_terminal() else contextlib.redirect_stderr(io.StringIO())
    try:
        with contextlib.redirect_stdout(io.StringIO()), errors:
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
