"""What a rounding to int8 looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Batches as a model takes them, and the divergence a prediction that rounding may cost on them at most.

    The divergence is that of `niwaki.anatomy.predictions`: in nats, for classes.
    """

    batches: Sequence[dict[str, Tensor]]
    most: float = 0.01
