"""Matplotlib, loaded so that what it keeps for itself lasts as long as the process.

Where its folder in the home cannot be written, it makes one among the temporary files and removes it at exit. Those of
the work lie where they are gone by then (see `niwaki.run.folder`), so it gets one among those of the system.
"""

from __future__ import annotations

import logging
import tempfile
from functools import cache
from typing import Any


@cache
def load_matplotlib() -> Any:
    """The module; that it has no folder of its own, or lists the fonts for one, it does not say."""
    logger, before = logging.getLogger("matplotlib"), tempfile.tempdir
    level = logger.level
    logger.setLevel(logging.ERROR)
    tempfile.tempdir = None
    try:
        import matplotlib.font_manager  # here: it takes half a second to import
    finally:
        tempfile.tempdir = before
        logger.setLevel(level)
    return matplotlib
