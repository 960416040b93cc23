"""Which of several models nobody would pass over: the Pareto frontier, and its knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Costs = Mapping[str, Sequence[float]]
"""Name -> what is to be small, in one order for all."""


def frontier(costs: Costs) -> list[str]:
    """The names that no other is at least as good as in all, and better in one; by the first cost, rising."""

    def beats(other: Sequence[float], own: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own)

    left = [name for name, own in costs.items() if not any(beats(other, own) for other in costs.values())]
    return sorted(left, key=lambda name: (*costs[name], name))


def knee(costs: Costs) -> str | None:
    """Of two costs, the name on the frontier that lies farthest below the line between its ends, each scaled to [0, 1].

    Beyond it little is gained of one for much of the other (Das, "On characterizing the knee of the Pareto curve",
    1999). None where no name lies below the line.
    """
    names = frontier(costs)
    first, last = costs[names[0]], costs[names[-1]]
    spans = [abs(b - a) for a, b in zip(first, last, strict=True)]
    if not all(spans):
        return None

    def below(name: str) -> float:
        x, y = ((value - min(a, b)) / span for value, a, b, span in zip(costs[name], first, last, spans, strict=True))
        return 1 - x - y

    best = max(names, key=below)
    return best if below(best) > 1e-12 else None
