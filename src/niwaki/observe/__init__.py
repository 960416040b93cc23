"""One streamed pass over calibration data -> running sums, from which every score is made."""

from niwaki.observe.observe import frozen, observe
from niwaki.observe.statistics import (
    Batch,
    LinearSums,
    Need,
    Passes,
    Statistics,
    UnitSums,
    need_of,
    to_device,
)
from niwaki.observe.tokens import TokenWeights

__all__ = [
    "Batch",
    "LinearSums",
    "Need",
    "Passes",
    "Statistics",
    "TokenWeights",
    "UnitSums",
    "frozen",
    "need_of",
    "observe",
    "to_device",
]
