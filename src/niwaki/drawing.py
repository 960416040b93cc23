"""Matplotlib, which without a folder in the home makes one among temporary files, and removes it at exit."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from niwaki.temporary import temporary_files_that_last


@cache
def load_matplotlib() -> Any:
    """The module; that it has no folder in the home, or lists the fonts anew, it does not say."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with temporary_files_that_last():
            import matplotlib.font_manager  # here: it takes half a second to import
    finally:
        logger.setLevel(level)
    return matplotlib
