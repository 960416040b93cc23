"""What is pushed is what Niwaki wrote, to a stand-in of the Hub; what is not Niwaki's stays where it is."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from niwaki.checkpoint.folder import atomic_folder
from niwaki.checkpoint.source_card import source_card
from niwaki.errors import RequestError, WorkError
from niwaki.run import push


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP API as making a repository and committing files to it takes."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body))
        if self.server.refuses:
            return self._answer({"error": "not you"}, 403)
        if self.path.endswith("/create"):
            asked = json.loads(body)
            return self._answer({"url": f"{constants.ENDPOINT}/{asked['organization']}/{asked['name']}"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        commit = {"commitUrl": f"{constants.ENDPOINT}/me/small/commit/{'0' * 40}", "commitOid": "0" * 40}
        commit |= {"hookOutput": "", "success": True, "pullRequestUrl": None}
        return self._answer(commit if "/commit/" in self.path else {})

    def do_GET(self):
        self._answer({"id": "me/small", "sha": "0" * 40, "siblings": [], "private": not self.server.public})

    def _answer(self, found, status=200):
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.refuses, server.public = [], False, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    with atomic_folder(tmp_path / "small") as new:
        (new / "config.json").write_text("{}")
        (new / "report.html").write_text("rows of the data")
        (new / "recipe.yaml").write_text("train_data: /home/somebody/train.tsv")
        (new / "adapter").mkdir()
        (new / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "small" / "diary.txt").write_text("mine")
    return tmp_path / "small"


def committed(hub):
    """The files of the commit, by name."""
    lines = next(body for path, body in hub.asked if "/commit/" in path).decode().splitlines()
    values = [line["value"] for line in map(json.loads, lines[1:])]
    return {value["path"]: base64.b64decode(value["content"]) for value in values}


@pytest.mark.parametrize("with_report", [False, True])
def test_what_niwaki_wrote_is_pushed_and_rows_of_the_data_only_where_asked(hub, folder, with_report):
    assert push(folder, "me/small", private=True, with_report=with_report).endswith("/me/small")
    made = json.loads(hub.asked[0][1])
    assert (made["organization"], made["name"]) == ("me", "small")
    assert made.get("private") or made.get("visibility") == "private"
    files = committed(hub)
    assert set(files) == {"config.json", "adapter/adapter_config.json", *["report.html", "recipe.yaml"] * with_report}
    assert files["config.json"] == b"{}"


def test_an_adapter_is_based_on_the_repository_and_not_on_a_place_of_this_machine(hub, folder):
    config = {"base_model_name_or_path": "/home/somebody/small", "r": 4}
    with atomic_folder(folder.parent / "adapted") as new:
        (new / "config.json").write_text("{}")
        (new / "README.md").write_text("card")
        (new / "adapter").mkdir()
        (new / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    push(folder.parent / "adapted", "me/small", with_report=True)
    files = committed(hub)
    assert set(files) == {"config.json", "README.md", "adapter/adapter_config.json"}
    assert json.loads(files["adapter/adapter_config.json"]) == {**config, "base_model_name_or_path": "me/small"}
    assert b"somebody" not in b"".join(files.values())


def test_a_refusal_of_the_hub_is_one_line(hub, folder):
    hub.refuses = True
    with pytest.raises(WorkError, match="the Hub did not take 'me/small'") as raised:
        push(folder, "me/small")
    assert "\n" not in str(raised.value)


def test_nothing_goes_to_a_public_repository_where_a_private_one_is_asked(hub, folder):
    hub.public = True
    with pytest.raises(WorkError, match="the Hub has 'me/small' already, and it is public; nothing was uploaded"):
        push(folder, "me/small", private=True)
    assert [path for path, _ in hub.asked] == ["/api/repos/create"]
    push(folder, "me/small")
    assert any("/commit/" in path for path, _ in hub.asked)


def test_what_is_not_niwakis_or_no_model_or_no_name_is_refused(hub, folder, tmp_path):
    for bad in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RequestError, match="must be a folder that Niwaki wrote"):
            push(bad, "me/small")
    with atomic_folder(tmp_path / "scores") as new:
        (new / "scores.json").write_text("{}")
    with pytest.raises(RequestError, match="must hold a model"):
        push(tmp_path / "scores", "me/small")
    with pytest.raises(RequestError, match="REPOSITORY must be owner/name"):
        push(folder, "me/small/much")
    assert hub.asked == []


@pytest.mark.parametrize("entry", ["../secret", "a/../../secret", "/secret", "link", "inside/secret", ".git/config"])
def test_a_mark_that_leads_elsewhere_is_refused_by_name(hub, folder, entry):
    secret = folder.parent / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("mine")
    (folder / "link").symlink_to(secret)
    (folder / "inside").symlink_to(secret.parent)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("mine")
    (folder / ".niwaki").write_text(json.dumps({"entries": ["config.json", entry]}))
    with pytest.raises(RequestError, match=entry):
        push(folder, "me/small")
    assert hub.asked == []


def test_the_licence_and_the_language_of_the_source_are_carried_over(tmp_path):
    assert source_card(str(tmp_path)) == {}
    text = "---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: owner/base\ntags: [x]\n---\n# A model\n"
    (tmp_path / "README.md").write_text(text)
    carried = {"license": "apache-2.0", "language": ["en", "de"], "base_model": "owner/base"}
    assert source_card(str(tmp_path)) == carried
    (tmp_path / "README.md").write_text(text.replace("owner/base", str(tmp_path)))
    assert "base_model" not in source_card(str(tmp_path))
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert source_card(str(tmp_path)) == {}
