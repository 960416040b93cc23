"""What this machine is: timings hold for it alone."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """The model of the processor as the system names it; its architecture where it does not."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
