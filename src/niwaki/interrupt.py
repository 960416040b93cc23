"""What stops the command: Ctrl-C, SIGTERM and SIGHUP are one line and exit status 130, 143 and 129 at any time.

The package imports PyTorch and Transformers, which takes seconds, before `niwaki.cli.main` can catch anything: until
then they end it at once. This file is the first that is imported, in every program that uses the package, however it
was started: it must not raise, and a library's importer sees none of it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_UNTOUCHED = {
    getattr(signal, name): handler
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),  # nohup ignores it
    )
    if hasattr(signal, name)
}
"""Signal -> what Python does on it where nobody chose otherwise."""


class Stopped(BaseException):
    """A signal asked the command to end. It is no KeyboardInterrupt: Typer would make exit status 130 of any such."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def _stop(number: int, _frame: FrameType | None) -> None:
    os.write(2, b"niwaki: interrupted\n")
    os._exit(128 + number)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)


def is_command(arguments: Sequence[str], started_with: Sequence[str]) -> bool:
    """Whether `niwaki`, or `python -m niwaki` in any spelling, was started.

    `arguments` is `sys.argv`, `started_with` is `sys.orig_argv`, with Python's own options in it. A process that the
    command starts by multiprocessing is none: it has the arguments of the command, and ends when that says so.
    """
    if not arguments or "--multiprocessing-fork" in started_with:
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
    """Until `raise_again` a signal ends the command at once; nothing is changed in any other program."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        return
    if is_command(getattr(sys, "argv", ()), getattr(sys, "orig_argv", ())):
        for number, usual in _UNTOUCHED.items():
            if signal.getsignal(number) == usual:
                signal.signal(number, _stop)


def raise_again() -> None:
    """From now on a signal raises `Stopped`: there may be something to clean up."""
    for number in _UNTOUCHED:
        if signal.getsignal(number) is _stop:
            signal.signal(number, _raise)


stop_at_once()
