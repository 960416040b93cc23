"""A folder is written whole or not at all, wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import niwaki
from niwaki.checkpoint.folder import atomic_folder
from tiny import tiny


def written(out, **options):
    with atomic_folder(out, **options) as folder:
        (folder / "new").write_text("x")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("out", ["out", "d1/d2/out"])
def test_nothing_half_written_is_left(tmp_path, out):
    def interrupted():
        with atomic_folder(tmp_path / out) as folder:
            (folder / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []
    (tmp_path / "d1").mkdir()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["d1"]


def test_a_new_folder_is_an_ordinary_one(tmp_path):
    (tmp_path / "usual").mkdir()
    written(tmp_path / "d1" / "out")
    assert names(tmp_path) == ["d1", "d1/out", "d1/out/new", "usual"]
    assert (tmp_path / "d1" / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_existing_folder_is_refused_or_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        niwaki.save(tiny(), tmp_path / "out")
    assert names(tmp_path) == ["out", "out/mine"]
    niwaki.save(tiny(), tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out", "out/config.json", "out/model.safetensors"]


@pytest.mark.parametrize("there", [True, False])
def test_the_result_lands_where_a_link_leads(tmp_path, there):
    if there:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").read_text() == "x"
    written(tmp_path / "link", overwrite=True)
    assert names(tmp_path / "real") == ["new"]


def test_the_working_directory_is_filled_and_stays_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(".")
    assert names(tmp_path) == ["new"]
    Path("more").mkdir()
    written(".", overwrite=True)
    assert [str(path) for path in Path().iterdir()] == ["new"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_rename_that_fails_puts_the_old_content_back(tmp_path, monkeypatch, failing):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "out" / "new").write_text("old")
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no"):
        written(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out", "out/mine", "out/new"]
    assert (tmp_path / "out" / "new").read_text() == "old"
