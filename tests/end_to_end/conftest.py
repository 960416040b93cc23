"""The command as it is typed."""

from __future__ import annotations

import sys

import pytest

from niwaki.cli import main


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run `niwaki` with these words in a folder: exit status, standard output, error lines."""

    def run(folder, *words):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["niwaki", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run
