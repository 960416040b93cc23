"""Whether the command was started is known from every way to start it, and importing the package never fails on it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from niwaki import interrupt


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "niwaki"],
        ["-mniwaki"],
        ["-Imniwaki"],
        ["-m", "niwaki.__main__"],
    ],
)
@pytest.mark.parametrize("before", [[], ["-Xdev"], ["-X", "dev"], ["-W", "error::m"], ["-B", "-Wm"]])
@pytest.mark.parametrize("options", [[], ["eval", "-m", "niwaki"], ["-m"], ["--model", "m"]])
def test_every_spelling_of_the_module_is_the_command(words, before, options):
    assert interrupt.is_command(["-m", *options], ["python", *before, *words, *options])


@pytest.mark.parametrize(
    ("arguments", "started_with"),
    [
        (["-m", "niwaki"], ["python", "-m", "pytest", "niwaki"]),
        (["-m", "-m", "niwaki"], ["python", "-mpytest", "-m", "niwaki"]),
        (["-m"], ["python", "-m", "niwaki_other"]),
        (["-m", "a", "b"], ["python"]),
        (["-m"], []),
        (["-c"], ["python", "-c", "import niwaki"]),
        ([""], ["python"]),
        ([], []),
        (["/tools/pytest"], ["python", "/tools/pytest"]),
        (["train.py", "niwaki"], ["python", "train.py", "niwaki"]),
        (["/usr/bin/niwaki", "sweep"], ["python", "-c", "spawn_main()", "--multiprocessing-fork"]),
    ],
)
def test_other_programs_are_not(arguments, started_with):
    assert not interrupt.is_command(arguments, started_with)


@pytest.mark.parametrize("program", ["/usr/bin/niwaki", "niwaki.exe", "dist/niwaki.pyz"])
def test_the_script_is(program):
    assert interrupt.is_command([program, "demo"], ["python", program, "demo"])


def started(*words, **more):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A package `niwaki` that imports `interrupt.py` alone, and says what Ctrl-C would do."""
    place = tmp_path_factory.mktemp("place")
    (place / "niwaki").mkdir()
    (place / "niwaki" / "__init__.py").write_text("import niwaki.interrupt\n")
    (place / "niwaki" / "__main__.py").write_text(
        "import signal\nprint(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)\n"
    )
    source = importlib.util.find_spec("niwaki.interrupt").origin
    (place / "niwaki" / "interrupt.py").write_bytes(Path(source).read_bytes())
    with zipfile.ZipFile(place / "app.pyz", "w") as archive:
        archive.write(source, "niwaki/interrupt.py")
        archive.writestr("niwaki/__init__.py", "import niwaki.interrupt\n")
        archive.writestr("__main__.py", (place / "niwaki" / "__main__.py").read_text() + "import niwaki\n")
    return place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-mniwaki", "eval"], "True"),
        (["-X", "utf8", "-m", "niwaki", "-m"], "True"),
        (["-Bm", "niwaki"], "True"),
        (["-c", "import niwaki, sys; sys.argv = []; import importlib; importlib.reload(niwaki.interrupt)"], ""),
        (["-c", "import sys; del sys.orig_argv; sys.argv = ['-m']; import niwaki"], ""),
        (["app.pyz"], "False"),
    ],
)
def test_importing_never_fails(place, words, said):
    done = started(*words, cwd=place)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, said, "")


def test_a_thread_of_the_command_may_import_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["niwaki"])
    before, failed = signal.getsignal(signal.SIGINT), []

    def ask():
        try:
            interrupt.stop_at_once()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert failed == []
    assert signal.getsignal(signal.SIGINT) is before
