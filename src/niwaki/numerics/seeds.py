"""Global random state: drawn from a seed for a while, then as it was.

PEFT and Transformers draw new factors, heads and dropout from the global generators and take no other. So what calls
them opens `seeded`: the same seed gives the same numbers whatever was drawn before, and nobody's random state changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While open, the global generators of Python, NumPy and PyTorch start from `seed`; all is as it was after."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
