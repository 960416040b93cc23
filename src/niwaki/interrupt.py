"""Ctrl-C while the command is still importing: one line and exit status 130, as later. A library's importer sees none.

The package imports PyTorch and Transformers, which takes seconds, before `niwaki.cli.main` can catch anything.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def _stop(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"niwaki: interrupted\n")
    os._exit(130)


def _is_command() -> bool:
    if sys.argv[0] == "-m":  # what Python says while it looks for the module to run
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == "niwaki"
    return Path(sys.argv[0]).stem == "niwaki"


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt: there may be something to clean up."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
