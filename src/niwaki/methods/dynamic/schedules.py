"""When the masks are updated, to which sparsity, and how much may then be replaced: whole updates of whole steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from niwaki.config import DynamicSparsityConfig
from niwaki.config.by_name import by_name
from niwaki.config.dynamic import FRACTIONS, SCHEDULES
from niwaki.errors import RequestError
from niwaki.methods.dynamic import fractions, sparsities
from niwaki.numerics.decimals import whole_part

SEARCHED = 100_000
"""Steps up to which a training long enough for a schedule is looked for."""


SPARSITIES: dict[str, Callable[[float, float, float], float]] = by_name(SCHEDULES, sparsities)
SHARES: dict[str, Callable[[float, float], float]] = by_name(FRACTIONS, fractions)


@dataclass(frozen=True)
class Schedule:
    """When the mask is updated in a training of `steps` optimizer steps, and to what; steps count from 1."""

    config: DynamicSparsityConfig
    steps: int
    start: float
    begin: int
    reach: int
    stop: int

    @property
    def updates(self) -> range:
        """The steps after which the mask is updated."""
        return range(self.begin + self.config.interval, self.stop + 1, self.config.interval)

    @property
    def last(self) -> int:
        """The step of the last update, 0 where there is none."""
        return self.updates[-1] if self.updates else 0

    def sparsity(self, step: int) -> float:
        """Sparsity after `step`: that of the latest update, rising with them only."""
        if step < self.begin + self.config.interval or not self.updates:
            return SPARSITIES[self.config.schedule](0.0, self.start, self.config.sparsity)
        update = self.updates[min(step - self.begin, self.last - self.begin) // self.config.interval - 1]
        part = min((update - self.begin) / max(self.reach - self.begin, 1), 1.0)
        return SPARSITIES[self.config.schedule](part, self.start, self.config.sparsity)

    def replaced(self, step: int) -> float:
        """Share of the active weights that the update at `step` may replace."""
        if self.config.grow == "none":
            return 0.0
        return SHARES[self.config.fraction_schedule](step / self.stop, self.config.update_fraction)

    def captures(self, step: int) -> bool:
        """Whether the gradient of `step` is looked at: it is among the last `window` before an update."""
        if not self.begin < step <= self.last:
            return False
        return (self.begin - step) % self.config.interval < self.config.window

    @property
    def reaches(self) -> bool:
        """Whether the last update is at the sparsity that was asked."""
        return self.sparsity(self.last) == self.config.sparsity

    @property
    def is_enough(self) -> bool:
        """Whether the sparsity is reached, and the mask moves where weights are to return."""
        return self.reaches and (bool(self.updates) or self.config.grow == "none")


def plan_schedule(config: DynamicSparsityConfig, steps: int, start: float | None = None) -> Schedule:
    """The schedule of `config` in a training of `steps` optimizer steps that starts at sparsity `start`.

    Raises:
        RequestError: the sparsity asked is not reached within the steps, or no weight could return in them; says how
            many are needed.
    """
    if steps < 1:
        raise RequestError(f"steps must be at least 1, got {steps}")
    schedule = _schedule(config, steps, start)
    if not schedule.is_enough:
        needed = next((n for n in range(steps + 1, SEARCHED) if _schedule(config, n, start).is_enough), None)
        enough = f"at least {needed} steps are needed" if needed else "no number of steps is enough"
        when = f"with interval {config.interval}, reach {config.reach:g} and stop {config.stop:g}"
        rule = f"sparsity {config.sparsity:g} must be reached by an update"
        if schedule.reaches:
            rule = "weights must return at one update at least (or be asked not to: grow none)"
        raise RequestError(f"{rule} {when}: {enough}, got {steps}")
    return schedule


def _schedule(config: DynamicSparsityConfig, steps: int, start: float | None) -> Schedule:
    asked = (config.warmup, config.reach, config.stop)
    begin, reach, stop = (whole_part(x, steps) if x <= 1 else int(x) for x in asked)
    started = config.start_sparsity if start is None else start
    return Schedule(config, steps, started, begin, reach, min(stop, steps))
