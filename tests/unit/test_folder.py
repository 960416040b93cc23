"""A folder is written whole or not at all, wherever it is, and nothing is replaced that Niwaki did not write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import niwaki
from niwaki.checkpoint.folder import atomic_file, atomic_folder
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
    assert names(tmp_path) == ["d1", "d1/out", "d1/out/.niwaki", "d1/out/new", "usual"]
    assert (tmp_path / "d1" / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_of_ours_is_replaced_when_asked(tmp_path):
    niwaki.save(tiny(), tmp_path / "out")
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        niwaki.save(tiny(), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    niwaki.save(tiny(seed=1), tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out", "out/.niwaki", "out/config.json", "out/model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before


def added(folder, what):
    """Put something of a user's into a folder that Niwaki wrote."""
    place = folder / what
    place.parent.mkdir(parents=True, exist_ok=True)
    if what.endswith("/"):
        place.mkdir()
    else:
        place.write_text("mine")


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("notes.txt", "notes.txt"),
        (".git/config", ".git/"),
        ("deep/notes.txt", "deep/notes.txt"),
        ("empty/", "empty/"),
        (".env", ".env"),
        ("other/.niwaki", "other/"),
    ],
)
def test_what_a_user_put_there_is_named_and_never_removed(tmp_path, what, named):
    def write(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("x")

    with atomic_folder(tmp_path / "out") as folder:
        write(folder)
    added(tmp_path / "out", what)
    before = names(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(niwaki.RequestError, match=f"out must be .* with {named}$"):
            written(tmp_path / "out", overwrite=overwrite)
    assert names(tmp_path) == before


@pytest.mark.parametrize("mark", [None, "", "{}", "[]", '{"entries": 3}', '{"entries": []}'])
def test_a_folder_without_a_true_mark_is_never_replaced(tmp_path, mark):
    out = tmp_path / "out"
    for name in ("a", "b", "c", "d", "e"):
        added(out, name)
    if mark is not None:
        (out / ".niwaki").write_text(mark)
    before = names(tmp_path)
    with pytest.raises(niwaki.RequestError, match=r"only what Niwaki wrote, got .*out' with .*a, b.* and [23] more"):
        niwaki.save(tiny(), out, overwrite=True)
    assert names(tmp_path) == before


@pytest.mark.parametrize("out", ["file", "link", ".", "..", "~home", "/"])
def test_places_that_are_somebodys_are_refused(tmp_path, monkeypatch, out):
    added(tmp_path, "work/mine")
    added(tmp_path, "file")
    (tmp_path / "link").symlink_to("work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    place = {"file": tmp_path / "file", "link": tmp_path / "link", "~home": Path.home()}.get(out, Path(out))
    before = names(tmp_path)
    with pytest.raises(niwaki.RequestError, match="out must be a new or empty folder"):
        written(place, overwrite=True)
    assert names(tmp_path) == before


def test_a_folder_that_holds_the_working_directory_is_refused(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "out" / "inner")
    with pytest.raises(niwaki.RequestError, match=r"above the working directory, got '\.\.'"):
        written("..", overwrite=True)
    assert names(tmp_path) == ["out", "out/.niwaki", "out/inner"]


def test_a_folder_inside_may_be_written_anew_and_the_outer_one_stays_ours(tmp_path):
    with atomic_folder(tmp_path / "out") as folder:
        written(folder / "inner")
    with atomic_folder(tmp_path / "out" / "inner", overwrite=True) as folder:
        (folder / "other").write_text("x")
    assert names(tmp_path / "out") == [".niwaki", "inner", "inner/.niwaki", "inner/other"]
    added(tmp_path, "out/inner/mine")
    with pytest.raises(niwaki.RequestError, match=r"with inner/mine$"):
        written(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "inner" / "mine").unlink()
    written(tmp_path / "out" / "more")
    with pytest.raises(niwaki.RequestError, match=r"with more/$"):
        written(tmp_path / "out", overwrite=True)
    shutil.rmtree(tmp_path / "out" / "more")
    written(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == [".niwaki", "new"]


@pytest.mark.parametrize("there", [False, True])
def test_what_comes_while_the_work_goes_on_is_not_lost(tmp_path, there):
    if there:
        written(tmp_path / "out")

    def work():
        with atomic_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "newer").write_text("x")
            added(tmp_path, "out/mine")

    with pytest.raises(niwaki.RequestError, match=r"with mine$"):
        work()
    assert names(tmp_path / "out") == [*[".niwaki"] * there, "mine", *["new"] * there]


def test_what_a_link_in_it_leads_to_stays(tmp_path):
    added(tmp_path, "mine/data")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "data").mkdir()
    (tmp_path / "out" / "data").rmdir()
    (tmp_path / "out" / "data").symlink_to(tmp_path / "mine")
    written(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["mine", "mine/data", "out", "out/.niwaki", "out/new"]


def test_the_mark_is_the_same_for_the_same_files(tmp_path):
    for out in ("a", "b"):
        written(tmp_path / out)
    assert (tmp_path / "a" / ".niwaki").read_bytes() == (tmp_path / "b" / ".niwaki").read_bytes()


@pytest.mark.parametrize("there", [True, False])
def test_the_result_lands_where_a_link_leads(tmp_path, there):
    if there:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").read_text() == "x"
    written(tmp_path / "link", overwrite=True)
    assert names(tmp_path / "real") == [".niwaki", "new"]


def test_the_working_directory_is_filled_and_stays_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(".")
    assert names(tmp_path) == [".niwaki", "new"]
    written(".", overwrite=True)
    assert sorted(str(path) for path in Path().iterdir()) == [".niwaki", "new"]


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_rename_that_fails_puts_the_old_content_back(tmp_path, monkeypatch, failing):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "old").write_text("x")
        (folder / "new").write_text("old")
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no"):
        written(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out", "out/.niwaki", "out/new", "out/old"]
    assert (tmp_path / "out" / "new").read_text() == "old"


def test_a_file_is_replaced_only_if_it_is_ours(tmp_path):
    def ours(path):
        return path.read_text() == "ours"

    def write(path, overwrite=True):
        with atomic_file(path, overwrite, ours, "a page") as file:
            file.write_text("ours")

    write(tmp_path / "deep" / "page", overwrite=False)
    write(tmp_path / "deep" / "page")
    with pytest.raises(niwaki.RequestError, match=r"a page that Niwaki wrote, got .* without --overwrite"):
        write(tmp_path / "deep" / "page", overwrite=False)
    added(tmp_path, "mine")
    (tmp_path / "link").symlink_to("mine")
    for path, rule in (("mine", "something else"), ("link", "something else"), ("deep", "no file")):
        with pytest.raises(niwaki.RequestError, match=rule):
            write(tmp_path / path)
    assert (tmp_path / "mine").read_text() == "mine"
    assert names(tmp_path) == ["deep", "deep/page", "link", "mine"]
