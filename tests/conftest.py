"""No test reaches a network or the user's cache; Ctrl-C reaches what tests start, also where a shell ignores it."""

import atexit
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NIWAKI_CACHE"] = tempfile.mkdtemp(prefix="niwaki-test-cache-")
atexit.register(shutil.rmtree, os.environ["NIWAKI_CACHE"], ignore_errors=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
