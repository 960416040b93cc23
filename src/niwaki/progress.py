"""What is said on standard error while work goes on: moving bars on a terminal, lines anywhere else.

A log that bars are written to holds thousands of them, one after the other. It gets a line for each phase instead, and
of a long one a line at each tenth. Both tell the time that is left of the phase, and of the whole job as far as the
steps that are done tell.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

from huggingface_hub import utils as hub
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

T = TypeVar("T")
Bar = tqdm
"""What `bar` gives."""
_WIDTH = 100
"""Characters of a table as text."""
_SECONDS = 10.0
"""From one line of a phase in a log to the next, at least."""


def at_terminal() -> bool:
    """Whether standard error is a terminal whose cursor can go back."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def say(line: str, quiet: bool = False) -> None:
    """One line for the person who started the work; what is no text in it (a label may hold anything) becomes blank."""
    if not quiet:
        text = "".join(character if character.isprintable() else " " for character in line)
        tqdm.write(f"{text}\n", file=sys.stderr, end="")  # at once: processes side by side may say something, too


class Job:
    """Steps one after the other, of `costs` in a unit of their own; a step may be a job itself."""

    def __init__(self, costs: Sequence[float]) -> None:
        self.costs = list(costs)
        self.step: int | None = None
        self.begun = self.seconds = self.done = 0.0

    def begin(self, step: int) -> None:
        """End the step at work and go on to another; steps may be left out."""
        now = time.perf_counter()
        if self.step is not None:
            self.seconds += now - self.begun
            self.done += self.costs[self.step]
        self.step, self.begun = step, now

    def left(self, inner: float, known: bool) -> tuple[float, bool]:
        """Seconds that are left, and whether that is all, when the step at work has `inner` left, all `known` or not.

        By the rate of the steps that are done; in the first one by its own, where what is left of that is known.
        """
        if self.step is None:
            return inner, False
        spent = time.perf_counter() - self.begun
        cost, rest = self.costs[self.step], sum(self.costs[self.step + 1 :])
        if self.done:
            rate = self.seconds / self.done
            return max(inner, rate * cost - spent) + rate * rest, True
        if known and cost:
            return inner + (spent + inner) / cost * rest, True
        return inner, False


_jobs: list[Job] = []
"""Those at work, the outermost first."""


@contextmanager
def job(costs: Sequence[float]) -> Iterator[Job]:
    """While open, bars tell the time that is left of a job of these steps, too."""
    _jobs.append(Job(costs))
    try:
        yield _jobs[-1]
    finally:
        _jobs.pop()


def bar(
    items: Iterable[T] | None = None, *, phase: str, unit: str, total: int | None = None, progress: bool
) -> tqdm[T]:
    """A bar over `items`, or one of `total` steps that the caller moves; nothing without `progress`.

    `unit` is a plural. Where there is no terminal the phase is said in a line, with the number of items if it is known,
    and then each tenth of it, but no two within `_SECONDS`.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    told = {"desc": phase, "unit": f" {unit}", "total": total, "disable": not progress, "leave": False}
    if at_terminal() or not progress:
        return cast("tqdm[T]", _OfJob(items, **told))
    say(f"{phase}: {total} {unit}" if total is not None else phase)
    return cast("tqdm[T]", _Tenths(items, **told, file=io.StringIO(), mininterval=_SECONDS, maxinterval=_SECONDS))


class _OfJob(tqdm):
    """A bar that tells how long the job takes from here, beside its phase."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What there is to be drawn."""
        told = dict(super().format_dict)
        if not (_jobs and told["n"] and told["total"]):
            return told
        left, known = (told["total"] - told["n"]) * told["elapsed"] / told["n"], False
        for each in reversed(_jobs):
            left, known = each.left(left, known)
        line = f"job: {'' if known else 'at least '}{self.format_interval(left)} left"
        return {**told, "postfix": ", ".join(filter(None, (told["postfix"], line)))}


class _Tenths(_OfJob):
    """Says each tenth of its total in a line, with the time that the rest takes at the rate so far; draws nothing."""

    said = 0

    def __del__(self) -> None:
        with suppress(AttributeError):  # of one that was interrupted while it was made
            super().__del__()

    def display(self, *_: object, **__: object) -> None:
        """What is called where a bar would be drawn anew."""
        tenth = int(10 * self.n / self.total) if self.total else 0
        if self.said < tenth < 10:
            self.said = tenth
            told = self.format_dict
            left = self.format_interval((self.total - self.n) * told["elapsed"] / self.n)
            line = f"{self.desc}: {10 * tenth} % ({self.n} of {self.total}{self.unit}), {left} left"
            say(f"{line}; {told['postfix']}" if told["postfix"] else line)


def bars_of_this_process_alone() -> None:
    """Let bars here ask no other process: the lock is one of all, and a process that is ended would leave it behind."""
    tqdm.set_lock(threading.RLock())


def show(table: Table, progress: bool) -> None:
    """A table on a terminal, its title as a line anywhere else; nothing without `progress`."""
    if progress and at_terminal():
        Console(stderr=True).print(table)
    elif progress:
        say(str(table.title))


def print_table(table: Table) -> bool:
    """A table on standard output if that is a terminal; whether it is."""
    if sys.stdout.isatty():
        Console().print(table)
    return sys.stdout.isatty()


def text_of(table: Table) -> str:
    """A table as plain text."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


@contextmanager
def library_manners(quiet: bool) -> Iterator[None]:
    """While open, libraries draw no bars where Niwaki draws none; with `quiet` they do not warn either."""
    if at_terminal() and not quiet:
        yield
        return
    logger, bars = transformers_logging.get_logger(), _bars_drawn()
    level = logger.level
    _draw_bars(dict.fromkeys(bars, False))
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
                logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
        _draw_bars(bars)


def _bars_drawn() -> dict[str, bool]:
    """Library -> whether it draws bars."""
    import datasets  # here: it takes a second to import

    return {
        "transformers": transformers_logging.is_progress_bar_enabled(),
        "huggingface_hub": not hub.are_progress_bars_disabled(),
        "datasets": not datasets.are_progress_bars_disabled(),
    }


def _draw_bars(wanted: dict[str, bool]) -> None:
    """Tell each library whether to draw bars, Transformers first: it tells huggingface_hub the same."""
    import datasets

    switches = {
        "transformers": (transformers_logging.disable_progress_bar, transformers_logging.enable_progress_bar),
        "huggingface_hub": (hub.disable_progress_bars, hub.enable_progress_bars),
        "datasets": (datasets.disable_progress_bars, datasets.enable_progress_bars),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where an environment variable decides, they say so
        for name, draws in wanted.items():
            switches[name][draws]()
