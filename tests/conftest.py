"""No test reaches a network or the user's cache."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NIWAKI_CACHE"] = tempfile.mkdtemp(prefix="niwaki-test-cache-")
