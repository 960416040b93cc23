"""What Transformers and PEFT raise and print when files are read and written, in one place."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from niwaki.errors import NiwakiError, RequestError, WorkError, limit_of

UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    *(ImportError, MemoryError, SafetensorError, StrictDataclassError),
)
"""What Transformers and PEFT raise, in one place or another, over files that are damaged or of something else."""


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """No reports and (unless `progress`) no progress bars of Transformers while open; its errors still raise."""
    logger, bars = transformers_logging.get_logger(), transformers_logging.is_progress_bar_enabled()
    level, hub_bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars and not progress:
            transformers_logging.enable_progress_bar()
        # Transformers turns those of the Hub's library off and on with its own.
        if hub_bars == are_progress_bars_disabled():
            (enable_progress_bars if hub_bars else disable_progress_bars)()


def line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def unreadable(name: str, error: BaseException) -> NiwakiError:
    """The error for a model folder or Hub id that does not load, by what was raised over it."""
    if isinstance(error, NiwakiError):
        return error
    if (limit := limit_of(error)) is not None:
        return WorkError(f"model {name!r}: {limit}")
    if "trust_remote_code" in str(error):
        return RequestError(f"model must load without code of its own, which is never run, got {name!r} that needs it")
    if isinstance(error, OSError) and not Path(name).is_dir():
        rule = "model must be a folder, or a Hub model that can be reached or is in the cache"
    else:
        rule = "model must be one of Transformers that loads"
    return RequestError(f"{rule}, got {name!r}: {line(error)}")
