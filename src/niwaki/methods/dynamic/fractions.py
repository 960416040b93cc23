"""Share of the active weights that an update may replace, by the part of the way to `stop`; pure functions of numbers.

With u the part in [0, 1] and a the share at its largest: cosine a/2 (1 + cos(pi u)) and inverse-power a (1 - u)^3
(RigL, Evci et al., ICML 2020); constant a.
"""

from __future__ import annotations

import math


def cosine(part: float, most: float) -> float:
    """Half a cosine from `most` to 0."""
    return most / 2 * (1 + math.cos(math.pi * part))


def constant(part: float, most: float) -> float:
    """`most` until the end."""
    del part
    return most


def inverse_power(part: float, most: float) -> float:
    """The cube of what is left of the way."""
    return most * (1 - part) ** 3
