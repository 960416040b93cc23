"""What tells one version of Niwaki's code from another: what was done by other code is done anew."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import niwaki


@cache
def code_digest() -> str:
    """Digest of the version and of all of Niwaki's files."""
    found = hashlib.sha256(niwaki.__version__.encode())
    for path in sorted(Path(niwaki.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
