"""Decimal fractions as people write them: 0.29 of 100 is 29, though 0.29 * 100 is less in binary.

What binary numbers are off by counts for nothing where a share is cut to whole steps, or held against what was asked;
and a bound that is shown with few decimals is rounded to the side on which it is still accepted.
"""

from __future__ import annotations

import math

_CLOSE = 1e-9


def whole_part(share: float, of: int) -> int:
    """The whole number below `share * of`, or at it."""
    return math.floor(share * of + _CLOSE)


def reaches(value: float, wanted: float) -> bool:
    """Whether `value` is `wanted` or more."""
    return value >= wanted - _CLOSE * abs(wanted)


def shown_least(value: float, decimals: int = 4) -> float:
    """A lower bound to so many decimals, none below it."""
    return math.ceil(value * 10**decimals - _CLOSE) / 10**decimals


def shown_most(value: float, decimals: int = 4) -> float:
    """An upper bound to so many decimals, none above it."""
    return math.floor(value * 10**decimals + _CLOSE) / 10**decimals
