"""No test reaches a network or the user's cache; Ctrl-C reaches what tests start, also where a shell ignores it.

Tests that run beside others (`-n`) have a thread each, and so has what they start.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NIWAKI_CACHE"] = tempfile.mkdtemp(prefix="niwaki-test-cache-")
atexit.register(shutil.rmtree, os.environ["NIWAKI_CACHE"], ignore_errors=True)

signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What was imported stays: to look through it again and again for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()
