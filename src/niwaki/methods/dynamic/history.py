"""What every update did to every linear: one line of JSON an update and linear."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HISTORY = "dynamic.jsonl"


@dataclass(frozen=True)
class Update:
    """One linear in one update, in weights.

    `regrown` of the grown had been active before. `survival` is the share of what the update before grew that this
    one left (None where that one grew nothing). `distance` is the share of the mask that differs from the first mask.
    """

    step: int
    linear: str
    sparsity: float
    dropped: int
    grown: int
    regrown: int
    survival: float | None
    distance: float


def summary(updates: Iterable[Update], sizes: dict[str, int], zeros: int, weights: int) -> dict[str, float]:
    """One update over all linears whose masks move, for a log.

    Sparsity is that of all `weights` of the model's linears, as budgets are; of those that do not move `zeros` are 0.
    """
    rows = list(updates)
    total = sum(sizes.values())
    return {
        "mask/sparsity": (zeros + sum(row.sparsity * sizes[row.linear] for row in rows)) / weights,
        "mask/dropped": float(sum(row.dropped for row in rows)),
        "mask/grown": float(sum(row.grown for row in rows)),
        "mask/regrown": float(sum(row.regrown for row in rows)),
        "mask/distance": sum(row.distance * sizes[row.linear] for row in rows) / total,
    }


def with_later(history: list[Update], made: list[Update]) -> list[Update]:
    """The history with what was done after the last update: one update, where that was at the same step."""
    if not made:
        return history
    before = {row.linear: row for row in history if row.step == made[0].step}
    earlier = [row for row in history if row.step != made[0].step]
    return earlier + [_joined(before[row.linear], row) if row.linear in before else row for row in made]


def _joined(before: Update, after: Update) -> Update:
    """What two updates of a linear did together."""
    counts = {name: getattr(before, name) + getattr(after, name) for name in ("dropped", "grown", "regrown")}
    return dataclasses.replace(after, **counts, survival=before.survival)


def write_history(updates: Iterable[Update], path: Path) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in updates), encoding="utf-8")


def read_history(path: Path) -> list[Update]:
    """Read what `write_history` wrote."""
    return [Update(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
