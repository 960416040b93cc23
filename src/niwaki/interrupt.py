"""Ctrl-C while the command is still importing: one line and exit status 130, as later. A library's importer sees none.

The package imports PyTorch and Transformers, which takes seconds, before `niwaki.cli.main` can catch anything. This
file is the first that is imported, in every program that uses the package, however it was started: it must not raise.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType


def _stop(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"niwaki: interrupted\n")
    os._exit(130)


def is_command(arguments: Sequence[str], started_with: Sequence[str]) -> bool:
    """Whether `niwaki`, or `python -m niwaki` in any spelling, was started.

    `arguments` is `sys.argv`, `started_with` is `sys.orig_argv`, with Python's own options in it.
    """
    if not arguments:
        return False
    if arguments[0] != "-m":
        return Path(arguments[0]).stem == "niwaki"
    # Python says "-m" while it looks for the module to run. Behind its name stand the arguments, as they are in
    # `arguments`; the name may be one word with the option, and with those before it: -mniwaki, -Imniwaki.
    if len(started_with) < len(arguments):
        return False
    word = started_with[-len(arguments)]
    module = word.partition("m")[2] if word.startswith("-") else word
    return module in ("niwaki", "niwaki.__main__")


def stop_at_once() -> None:
    """Until `raise_again` Ctrl-C ends the command at once; nothing is changed in any other program."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        return
    mine = is_command(getattr(sys, "argv", ()), getattr(sys, "orig_argv", ()))
    if mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt: there may be something to clean up."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


stop_at_once()
