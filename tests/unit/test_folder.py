"""A folder is written whole or not at all, wherever it is, and nothing is replaced that Niwaki did not write."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

import niwaki
from niwaki.checkpoint.folder import MARK, atomic_file, atomic_folder
from niwaki.checkpoint.working import place_for
from niwaki.run.folder import output_folder
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


def a_child(tmp_path, work):
    """A process that writes a folder in the folder `out`, which holds it, and does `work` meanwhile."""
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "points" / "one").mkdir(parents=True)
    told, tells = os.pipe()
    if not (child := os.fork()):
        with suppress(BaseException), atomic_folder(tmp_path / "out" / "points" / "one"):
            os.write(tells, b"!")
            work()
        os._exit(0)
    assert os.read(told, 1) == b"!"
    return child


def test_what_a_killed_command_left_in_a_folder_of_ours_is_replaced_with_it(tmp_path):
    child = a_child(tmp_path, lambda: os._exit(9))
    os.waitpid(child, 0)
    left = tmp_path / "out" / "points" / ".one.niwaki"
    assert (left / "new").is_dir()
    (tmp_path / "out" / "points" / ".two.niwaki").mkdir()  # beside nothing that Niwaki wrote
    with pytest.raises(niwaki.RequestError, match=r"with points/\.two\.niwaki/$"):
        written(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "points" / ".two.niwaki").rmdir()
    (left / "mine").write_text("x")
    with pytest.raises(niwaki.RequestError, match=r"with points/\.one\.niwaki/$"):
        written(tmp_path / "out", overwrite=True)
    (left / "mine").unlink()
    written(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out", "out/.niwaki", "out/new"]


def test_a_folder_in_which_another_command_works_is_not_replaced(tmp_path):
    waits, ends = os.pipe()
    child = a_child(tmp_path, lambda: os.read(waits, 1))
    with pytest.raises(niwaki.RequestError, match=r"with points/\.one\.niwaki/$"):
        written(tmp_path / "out", overwrite=True)
    os.write(ends, b"!")
    os.waitpid(child, 0)


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


def test_a_mark_that_leads_elsewhere_is_refused_and_nothing_goes(tmp_path):
    added(tmp_path, "secret")
    written(tmp_path / "out")
    (tmp_path / "out" / ".niwaki").write_text('{"entries": ["new", "../secret"]}')
    with pytest.raises(niwaki.RequestError, match=r".niwaki must list paths in its folder, got '../secret' in "):
        written(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out", "out/.niwaki", "out/new", "secret"]


@pytest.mark.parametrize("above", ["", "made/"])
def test_a_name_that_leaves_no_room_for_the_working_folder_is_refused_at_once(tmp_path, above):
    for length in (250, 300):
        with (
            pytest.raises(niwaki.RequestError, match="out must leave room for a working folder beside it"),
            atomic_folder(tmp_path / f"{above}{'n' * length}"),
        ):
            pytest.fail("no work is begun")
    assert names(tmp_path) == []


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


def replaced_in_place(monkeypatch):
    """As on a file system on which folders cannot change places."""

    def unable(one, other):
        raise OSError("cannot")

    monkeypatch.setattr("niwaki.checkpoint.folder.exchange", unable)


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6])
def test_a_move_that_fails_puts_the_old_content_back(tmp_path, monkeypatch, failing):
    replaced_in_place(monkeypatch)
    with atomic_folder(tmp_path / "out") as folder:
        for name in ("old", "new", "config.json"):
            (folder / name).write_text("old")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    move, calls = shutil.move, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError("no")
        return move(source, target)

    monkeypatch.setattr(shutil, "move", fail_once)
    with pytest.raises(OSError, match="no"):
        written(tmp_path / "out", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert names(tmp_path) == ["out", "out/.niwaki", "out/config.json", "out/new", "out/old"]


def killed_at(moment, work):
    """Do `work` in a process that is gone at its file operation number `moment`; whether it was."""
    child = os.fork()
    if not child:
        seen = []

        def look(event, arguments):
            if event in ("os.mkdir", "os.rename", "os.remove", "shutil.rmtree"):
                seen.append(event)
                if len(seen) == moment:
                    os._exit(9)

        sys.addaudithook(look)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["new", "exchange", "in place", "inside"])
def test_killed_at_any_file_operation_all_is_old_or_new_and_the_next_run_is_clean(tmp_path, monkeypatch, way):
    out = tmp_path / "out"

    def work(text="new"):
        with atomic_folder(out, overwrite=True) as folder:
            (folder / "deep").mkdir()
            for name in ("config.json", "model", "deep/x"):
                (folder / name).write_text(text)

    if way in ("in place", "inside"):
        replaced_in_place(monkeypatch)
    if way == "inside":

        def inside(target):
            return target / ".niwaki.working" if target.is_dir() else target.parent / ".out.niwaki"

        for place in ("folder", "working"):
            monkeypatch.setattr(f"niwaki.checkpoint.{place}.place_for", inside)
    work("new")
    new = content(out)
    moment, found = 0, set()
    while True:
        shutil.rmtree(out)
        if way != "new":
            work("old")
        before = content(out)
        moment += 1
        if not killed_at(moment, work):
            break
        left = {name: text for name, text in content(out).items() if not name.startswith(".niwaki.")}
        if "config.json" in left or way in ("new", "exchange"):
            found.add("new" if left == new else "old")
            assert left in (before, new)
        else:
            found.add("no model")
        work("newer")
        assert content(out) == {name: "newer" if text == "new" else text for name, text in new.items()}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert found == {"old", "new", *["no model"] * (way not in ("new", "exchange"))}


def test_of_two_processes_the_second_is_told_of_the_first(tmp_path):
    def first_line(work):
        ours, theirs = os.pipe()
        if not os.fork():
            with suppress(BaseException), atomic_folder(tmp_path / "out"):
                os.write(theirs, b"!")
                work()
            os._exit(0)
        assert os.read(ours, 1) == b"!"

    first_line(lambda: os._exit(9))
    os.wait()
    assert names(tmp_path) != []  # a killed one does not count
    ours, theirs = os.pipe()
    first_line(lambda: os.read(ours, 1))
    for _ in range(2):
        rule = r"one process at a time, got '.*out', which process \d+ writes"
        with pytest.raises(niwaki.RequestError, match=rule), atomic_folder(tmp_path / "out"):
            raise AssertionError
    os.write(theirs, b"!")
    os.wait()
    with pytest.raises(niwaki.RequestError, match="overwrite"):
        written(tmp_path / "out")
    assert names(tmp_path) == ["out", "out/.niwaki"]


@pytest.mark.parametrize("what", ["mine", "link", "file"])
def test_a_working_folder_that_is_not_ours_is_left_alone(tmp_path, what):
    place = tmp_path / ".out.niwaki"
    added(tmp_path, "elsewhere/new")
    if what == "link":
        place.symlink_to("elsewhere")
    else:
        added(tmp_path, ".out.niwaki/new/x" if what == "mine" else ".out.niwaki")
        if what == "mine":
            added(tmp_path, ".out.niwaki/mine")
    before = names(tmp_path)
    with pytest.raises(niwaki.RequestError, match="leave the working folder"):
        written(tmp_path / "out")
    assert names(tmp_path) == before


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


def test_temporary_files_of_a_command_lie_where_the_next_one_clears_them(tmp_path):
    before = tempfile.gettempdir()
    with output_folder(str(tmp_path / "out"), False) as folder:
        assert tempfile.gettempdir() != before
        left = Path(tempfile.mkdtemp(prefix="niwaki-"))
        assert place_for(tmp_path / "out") in left.parents
        assert left not in folder.parents
    assert tempfile.gettempdir() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_weights_can_be_read_by_whom_new_files_can(tmp_path):
    niwaki.save(tiny(), tmp_path / "out")
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}
