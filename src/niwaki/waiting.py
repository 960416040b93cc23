"""Threads of the command that wait for work sleep, unless the user chose otherwise; no importer of the library sees it.

GNU OpenMP, by which PyTorch computes, lets a thread turn for some milliseconds before it sleeps. Beside another busy
process that takes away the very time it waits for (`benchmarks/neighbours.py`). It reads its environment once, while
PyTorch is loaded, so this is imported before.
"""

from __future__ import annotations

import os
import sys

from niwaki.interrupt import is_command

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait."""


def sleep_while_waiting() -> None:
    """Say so in the environment of the command; nothing is changed in any other program."""
    mine = is_command(getattr(sys, "argv", ()), getattr(sys, "orig_argv", ()))
    if mine and not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


sleep_while_waiting()
