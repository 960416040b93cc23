"""Decimal fractions as people write them: 0.29 of 100 is 29, though 0.29 * 100 is less in binary.

What binary numbers are off by counts for nothing where a share is cut to whole steps, or held against what was asked;
and a bound that is shown with few decimals is rounded to the side on which it is still accepted.
"""

from __future__ import annotations

import math

_CLOSE = 1e-9
_SHOWN = 10_000


def whole_part(share: float, of: int) -> int:
    """The whole number below `share * of`, or at it."""
    return math.floor(share * of + _CLOSE)


def reaches(value: float, wanted: float) -> bool:
    """Whether `value` is `wanted` or more."""
    return value >= wanted - _CLOSE * abs(wanted)


def shown_least(value: float) -> float:
    """A lower bound to four decimals, none below it."""
    return math.ceil(value * _SHOWN - _CLOSE) / _SHOWN


def shown_most(value: float) -> float:
    """An upper bound to four decimals, none above it."""
    return math.floor(value * _SHOWN + _CLOSE) / _SHOWN
