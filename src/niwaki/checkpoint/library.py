"""What Transformers and PEFT raise and print when files are read and written, in one place."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    *(SafetensorError, StrictDataclassError),
)
"""What Transformers and PEFT raise, in one place or another, over files that are damaged or of something else."""


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """No reports and (unless `progress`) no progress bars of Transformers while open; its errors still raise."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars and not progress:
            transformers_logging.enable_progress_bar()


def line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
