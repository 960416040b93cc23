"""Points that are pruned side by side, and timed alone: a timing beside other work is that of neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext

import torch


class Gate:
    """Shared by processes: any number `work`, and `alone` lets one do what no other may work beside."""

    def __init__(self, context: SpawnContext, threads: int, jobs: int) -> None:
        self.condition = context.Condition()
        self.working, self.waiting, self.timing = (context.Value("i", 0, lock=False) for _ in range(3))
        self.threads, self.jobs = threads, jobs

    @contextmanager
    def work(self) -> Iterator[None]:
        """While open, this process works, with its part of the threads; nobody starts while another waits to time."""
        with self.condition:
            self.condition.wait_for(lambda: not (self.timing.value or self.waiting.value))
            self.working.value += 1
        torch.set_num_threads(max(1, self.threads // self.jobs))
        try:
            yield
        finally:
            self._add(self.working, -1)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within `work`: while open, no other process works, and this one has all threads."""
        with self.condition:
            self.working.value -= 1
            self.waiting.value += 1
            self.condition.notify_all()
            self.condition.wait_for(lambda: not (self.working.value or self.timing.value))
            self.waiting.value -= 1
            self.timing.value = 1
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(max(1, self.threads // self.jobs))
            with self.condition:
                self.timing.value = 0
                self.working.value += 1
                self.condition.notify_all()

    def _add(self, counter: object, number: int) -> None:
        with self.condition:
            counter.value += number  # type: ignore[attr-defined]
            self.condition.notify_all()
