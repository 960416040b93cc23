"""A bar is drawn on a terminal alone; a log gets a line for each phase, and `quiet` means quiet."""

from __future__ import annotations

import ast
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.table import Table
from transformers.utils import logging as transformers_logging

import niwaki
from niwaki.progress import Job, _Tenths, bar, job, library_manners, say, show

PACKAGE = Path(niwaki.__file__).parent


@pytest.fixture
def terminal(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")


def work(progress):
    return list(bar(range(3), phase="observe", unit="batches", progress=progress))


def test_a_log_gets_one_line_for_a_phase(capsys):
    assert work(True) == [0, 1, 2]
    with bar(total=500, phase="train", unit="steps", progress=True) as shown:
        shown.update()
    assert list(bar(iter([7]), phase="repair", unit="layers", progress=True)) == [7]
    assert capsys.readouterr() == ("", "observe: 3 batches\ntrain: 500 steps\nrepair\n")


def test_a_log_gets_the_tenths_of_a_long_phase_and_the_time_that_is_left(capsys, monkeypatch):
    monkeypatch.setattr("niwaki.progress._SECONDS", 0.0)
    for _ in bar(range(40), phase="train", unit="steps", progress=True):
        pass
    with bar(total=20, phase="repair", unit="layers", progress=True) as shown:
        for _ in range(10):
            shown.update(2)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "train: 40 steps"
    for phase, unit, count in (("train", "steps", 40), ("repair", "layers", 20)):
        own = [line for line in lines if line.startswith(f"{phase}: ") and "%" in line]
        assert [int(line.split()[1]) for line in own] == list(range(10, 100, 10))
        assert f"50 % ({count // 2} of {count} {unit}), 00:00 left" in own[4]


def test_the_time_that_a_job_has_left_is_told_by_the_steps_that_are_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("niwaki.progress.time", SimpleNamespace(perf_counter=lambda: now[0]))
    points, stages = Job([1, 1, 1]), Job([10, 30, 10])
    assert stages.left(2, known=False) == (2, False)
    points.begin(0), stages.begin(0)
    now[0] = 3.0
    assert stages.left(2, known=False) == (2, False)  # a step may have other phases to come
    now[0] = 5.0
    stages.begin(1)
    now[0] = 10.0
    assert stages.left(3, known=False) == (15, True)  # half a second for what costs 1: 10 of 15 here, and 5
    assert stages.left(20, known=False) == (25, True)
    assert points.left(15, known=True) == (65, True)  # two more points of 25 seconds
    assert points.left(15, known=False) == (15, False)


@pytest.mark.parametrize(("step", "told"), [(0, "at least 00:00 left"), (1, "00:00 left")])
def test_a_log_tells_the_time_of_the_whole_job(capsys, monkeypatch, step, told):
    monkeypatch.setattr("niwaki.progress._SECONDS", 0.0)
    with job([1, 1]) as steps:
        for number in range(step + 1):
            steps.begin(number)
        list(bar(range(2), phase="train", unit="steps", progress=True))
    assert f"train: 50 % (1 of 2 steps), 00:00 left; job: {told}\n" in capsys.readouterr().err


def test_one_that_was_interrupted_while_it_was_made_says_nothing():
    unfinished = _Tenths.__new__(_Tenths)
    unfinished.disable = False
    unfinished.__del__()


def test_a_terminal_gets_a_bar(capsys, terminal):
    assert work(True) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "\robserve" in err


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_nothing_is_said_unasked(capsys, terminal, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    table = Table("a", title="many rows")
    work(False), show(table, False), say("line", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_that_cannot_go_back_is_a_log(capsys, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    work(True)
    assert capsys.readouterr().err == "observe: 3 batches\n"


def test_a_table_is_its_title_in_a_log(capsys, monkeypatch):
    table = Table("step", title="5 updates in 10 steps")
    table.add_row("row")
    show(table, True)
    assert capsys.readouterr().err == "5 updates in 10 steps\n"
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    show(table, True)
    assert "row" in capsys.readouterr().err


def test_what_is_no_text_does_not_reach_the_terminal(capsys):
    say("labels 0 is a\rb, 1 is \x1b[31mred, 2 is caf\u00e9")
    assert capsys.readouterr().err == "labels 0 is a b, 1 is  [31mred, 2 is caf\u00e9\n"


def drawn():
    return (
        transformers_logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
        not datasets.are_progress_bars_disabled(),
        transformers_logging.get_logger().level,
    )


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("quiet", [True, False])
def test_libraries_draw_no_bars_in_a_log_and_all_is_as_it_was_after(quiet, hub):
    first = drawn()
    enable_progress_bars() if hub else disable_progress_bars()
    before = drawn()
    try:
        with suppress(KeyboardInterrupt), library_manners(quiet):
            assert drawn()[:3] == (False, False, False)
            raise KeyboardInterrupt
        assert drawn() == before
    finally:
        enable_progress_bars() if first[1] else disable_progress_bars()


def test_libraries_draw_their_bars_on_a_terminal_unless_quiet(terminal):
    before = drawn()
    with library_manners(quiet=False):
        assert drawn() == before
    with library_manners(quiet=True):
        assert drawn()[:3] == (False, False, False)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_else_writes_bars_or_tables_of_its_own(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    found = {node.module for node in nodes} & {"tqdm", "tqdm.auto", "rich.console", "rich.progress"}
    assert not found or path.name == "progress.py"
