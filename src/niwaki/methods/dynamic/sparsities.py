"""Sparsity by the part of the way from the start to `reach`; pure functions of numbers.

With u the part in [0, 1], s0 the sparsity at the start and s1 what was asked: constant s1; linear
s1 - (s1 - s0) (1 - u); cubic s1 + (s0 - s1) (1 - u)^3 (Zhu & Gupta, 2017).
"""

from __future__ import annotations


def constant(part: float, start: float, target: float) -> float:
    """The target from the start."""
    del part, start
    return target


def linear(part: float, start: float, target: float) -> float:
    """In proportion to the part of the way."""
    return target - (target - start) * (1 - part)


def cubic(part: float, start: float, target: float) -> float:
    """Fast while much is left that can be spared, slow at the end."""
    return target + (start - target) * (1 - part) ** 3
