"""Points that are done side by side end with the command, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

PROGRAM = """
import os, pathlib, sys, time, types
from niwaki.run.sweep import side_by_side

place = pathlib.Path(sys.argv[1])

class Shared:
    def __init__(self, *_, **__):
        pass

    def do(self, point, *_):
        (place / f"{point}-{os.getpid()}").touch()
        time.sleep(600)

class Place:
    def clear(self, point):
        (place / "cleared").open("a").write(f"{point}\\n")

side_by_side.Shared = Shared  # in the processes of the pool, too: they run this file up to here
if __name__ == "__main__":
    sweep = types.SimpleNamespace(jobs=2)
    side_by_side.do_side_by_side(sweep, Place(), ["a", "b", "c", "d"], place, True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals to processes")
@pytest.mark.parametrize("way", ["ctrl-c", "kill -9"])
def test_processes_end_with_the_one_that_started_them(tmp_path, way):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while len(begun := list(tmp_path.glob("?-*"))) < 2:
            assert command.poll() is None
            time.sleep(0.1)
        others = [psutil.Process(int(path.name[2:])) for path in begun]
        if way == "ctrl-c":
            os.killpg(command.pid, signal.SIGINT)  # as a terminal does
        else:
            command.kill()
        _, alive = psutil.wait_procs(others, 120)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        said = command.communicate(timeout=120)[1]
        assert [path.name[0] for path in sorted(tmp_path.glob("?-*"))] == ["a", "b"]
        if way == "ctrl-c":
            assert said.splitlines()[-1] == "KeyboardInterrupt"
            assert (tmp_path / "cleared").read_text().split() == ["a", "b", "c", "d"]
    finally:
        for process in psutil.Process(command.pid).children(recursive=True) if command.poll() is None else ():
            process.kill()
        command.kill()
