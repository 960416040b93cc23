"""What Matplotlib keeps for itself without a home, while the temporary files of the work lie where they will go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import niwaki

SCRIPT = """
import shutil, sys, tempfile, types
folder, place = sys.argv[1:]
sys.modules["niwaki"] = package = types.ModuleType("niwaki")  # without all that the package imports
package.__path__ = [folder]
from niwaki.drawing import load_matplotlib
tempfile.tempdir = place
found = load_matplotlib()
assert tempfile.tempdir == place
shutil.rmtree(place)  # as the temporary files of a command, which go before the process ends
print(found.get_configdir(), found.get_cachedir())
"""


def test_without_a_home_matplotlib_has_a_folder_that_lasts_and_says_nothing(tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "home").touch()  # below a file no folder can be made, not even by root
    (tmp_path / "system").mkdir()
    system = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "system")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG_"))}
    words = [sys.executable, "-c", SCRIPT, str(Path(niwaki.__file__).parent), str(tmp_path / "gone")]
    done = subprocess.run(words, env=kept | system, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert all(folder.startswith(system["TMPDIR"]) for folder in done.stdout.split())
    assert list((tmp_path / "system").iterdir()) == []
