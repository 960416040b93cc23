"""Figures made of sums over rows, and how far they would have been from themselves on other rows of the same kind.

Accuracy, F1, correlations, perplexity: each is a function of sums over rows. So is its interval of 95 %: the percentile
bootstrap (Efron, "Bootstrap methods: another look at the jackknife", 1979) draws as many rows anew, with replacement,
and takes the 2.5 % and 97.5 % points of what the figure then is. Rows that add alike are drawn together, which makes a
thousand draws cheap. It says how much the choice of the rows matters, and nothing of the choice of calibration data
or seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DRAWS = 1000
"""Draws, fewer where very many rows add differently."""
_AT_ONCE = 2**22
"""Numbers that are drawn at once at most."""

Figures = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Sums `[draws, k]` over rows -> metric -> its value in every draw."""


def figures_and_intervals(
    sums: np.ndarray, figures: Figures, counts: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The figures of all rows together, and their intervals; `sums` `[rows, k]` is what each row adds.

    `counts` `[rows]` says how often each stands there, once by default. A single row has no interval.
    """
    if counts is None:
        sums, counts = np.unique(sums, axis=0, return_counts=True)
    rows = int(counts.sum())
    found = {name: float(values[0]) for name, values in figures(counts[None] @ sums).items()}
    if rows < 2:
        return found, {}
    generator, draws = np.random.default_rng(0), max(100, min(DRAWS, 2**24 // len(sums)))
    share = max(1, min(DRAWS, _AT_ONCE // max(sums.shape)))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for start in range(0, draws, share):
        times = generator.multinomial(rows, counts / rows, size=min(share, draws - start))
        for name, values in figures(times @ sums).items():
            drawn[name].append(values)
    return found, {name: _span(np.concatenate(values)) for name, values in drawn.items()}


def _span(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above / below`, 0 where nothing is below."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)


def f1(right: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall, `2 right / (found + wanted)`; 0 where there is nothing to find."""
    return ratio(2.0 * right, found + wanted)
