"""What runs out or changes under the work is one line, and costs nothing that was there."""

from __future__ import annotations

import errno
import os
import resource
import sys
from contextlib import contextmanager

import pytest
import torch

import niwaki
from niwaki import cli, waiting
from niwaki.checkpoint import AsRead
from niwaki.data import read_table
from niwaki.data.running_text import text_of
from niwaki.numerics.threads import threads
from tiny import tiny

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/model.safetensors")
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "the disk is full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError("4096 requested and 2984 written"), "the disk is full"),
        (FULL, "write elsewhere (--out, and --activations-dir where that is given)"),
        (MemoryError(), "memory is used up; lower --batch-size"),
        (RuntimeError(f"{ALLOCATOR}\nbytes"), "memory is used up; lower --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory is used up"),
        (RuntimeError("something\nelse"), "failed: RuntimeError: something else ("),
    ],
    ids=[
        "disk",
        "disk in safetensors",
        "disk in NumPy",
        "folders",
        "memory",
        "memory in PyTorch",
        "memory of a GPU",
        "other",
    ],
)
def test_what_runs_out_is_said_with_what_to_do(error, said, monkeypatch, capsys):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["niwaki"])
    with pytest.raises(SystemExit, match="3"):
        cli.main()
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@contextmanager
def little_space(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    niwaki.save(tiny(layers=1), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with little_space(4096), pytest.raises(Exception, match="File too large"):
        niwaki.save(tiny(layers=2), tmp_path / "out", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("gone", [True, False])
def test_running_text_that_changes_is_not_taken_for_what_was_read(tmp_path, gone):
    path = tmp_path / "text.txt"
    path.write_text("a b\n\nc\n", "utf-8")
    table = read_table(str(path))
    assert text_of(table) == "a b\n\nc\n"
    if gone:
        path.unlink()
    else:
        path.write_text("others\n", "utf-8")
    with pytest.raises(niwaki.WorkError, match=r"text\.txt' has changed, or is gone"):
        text_of(table)


def test_weights_that_are_written_to_are_not_taken_for_what_was_read(tmp_path):
    tiny(layers=1).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    read, held = AsRead.of(str(tmp_path)), file.read_bytes()
    read.check()
    (tmp_path / "new").write_bytes(held)
    (tmp_path / "new").rename(file)  # the old one is still there for who reads it
    read.check()
    read = AsRead.of(str(tmp_path))
    file.write_bytes(held[: len(held) // 2])
    with pytest.raises(niwaki.WorkError, match=r"model\.safetensors' has changed since it was read"):
        read.check()
    assert AsRead.of("some/model") == AsRead()


def test_threads_are_set_for_a_while():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with threads(None):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("program", "chosen", "policy"),
    [("niwaki", {}, "PASSIVE"), ("train.py", {}, None), ("niwaki", {"GOMP_SPINCOUNT": "9"}, None)],
)
def test_threads_of_the_command_sleep_while_they_wait(monkeypatch, program, chosen, policy):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [program])
    waiting.sleep_while_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
