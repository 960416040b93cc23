"""Every command and every Python block of the README and of docs/, run as a reader would, on tiny models.

The folder of `place` holds what the pages call `my-model`, `train.tsv` and so on. A page may use what another page's
command writes (`half`): that command is then run first. What cannot run here is in `NOT_RUN` with its reason; its
flags are parsed and its Python compiled all the same.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import typer
from transformers import AutoModel

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.checkpoint import plain_pooling
from niwaki.cli import _spread, app
from tiny import batches, configs, tiny, with_lora

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text("utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
NOTEBOOK = ROOT / "docs" / "first_hour.ipynb"
NOT_RUN = {
    "make ": "sets up an environment",
    "pip install": "reaches a package registry",
    "torchrun": "starts processes; tests/end_to_end/test_processes_command.py does",
    "glue/": "reads a data set of the Hub",
    'backend="onnx"': "needs Optimum",
    "niwaki push": "reaches the Hub; tests/unit/test_push.py pushes to a stand-in",
    "--to onnx": "takes seconds to load PyTorch's exporter; tests/unit/test_export.py exports",
}
"""Words of a command or a block that is not run -> why."""
OTHER_FLAGS = (
    "--help",
    "--nproc-per-node",
    "--rows",
    "--seeds",
    "--timing",
    "--training-rows",
    "--write",
    "--recovery-data",
)
"""Flags of other programs: of Typer, of the scripts in benchmarks/."""
SENTENCES = ("a good bright film", "a bad dull plot", "the plot is not dull", "not a good film .")
LABELS = ("negative", "positive")


def fences(text: str, *kinds: str) -> Iterator[str]:
    """The fenced blocks of these kinds."""
    for kind, inside in re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind in kinds:
            yield inside


def commands(text: str) -> list[list[str]]:
    """The words of every command line of a page."""
    lines = "".join(fences(text, "bash", "sh", "console", "shell")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in found if words]


def out_of(words: list[str]) -> str | None:
    """What a command writes."""
    return words[words.index("--out") + 1] if "--out" in words else None


MAKERS = {out: words for text in PAGES.values() for words in commands(text) if (out := out_of(words))}
"""What the pages' commands write -> the command."""


def parse(words: list[str]) -> None:
    """Hold the flags of a `niwaki` command against those that it has; nothing is done."""
    command, rest = typer.main.get_command(app), _spread(words[1:])
    while hasattr(command, "commands"):
        context = click.Context(command)
        command.parse_args(context, rest)
        rest = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, rest)  # type: ignore[attr-defined]
    command.make_context(words[0], rest).close()


def reason(text: str) -> str | None:
    """Why something is not run."""
    return next((why for word, why in NOT_RUN.items() if word in text), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("reader")
    words = tiny_tokenizer()
    model = tiny(labels=2)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {name: index for index, name in enumerate(LABELS)}
    niwaki.save(model, place / "my-model", words)
    model.base_model.save_pretrained(place / "my-encoder")
    for folder, base in (
        (place / "my-lora", "../my-model"),
        (place / "niwaki-demo/finetuned/adapter", "../../../my-model"),
    ):
        adapter = with_lora(niwaki.load(place / "my-model"))
        adapter.peft_config["default"].base_model_name_or_path = base
        adapter.save_pretrained(str(folder))
    niwaki.save(tiny("llama"), place / "my-llama", words)
    torch.manual_seed(0)
    AutoModel.from_config(configs()["bert"]).save_pretrained(place / "my-sentence-encoder")
    plain_pooling("mean", 32, 20).write(place / "my-sentence-encoder")
    for name in ("my-encoder", "my-sentence-encoder", "my-lora", "niwaki-demo/finetuned/adapter"):
        words.save_pretrained(place / name)
    write_data(place)
    return place


def write_data(place: Path) -> None:
    """Rows of every form that a page names, few and short."""
    rows = [(SENTENCES[i % 4], LABELS[i % 4 in (0, 2)]) for i in range(24)]
    table = "\n".join(["sentence\tlabel", *map("\t".join, rows)]) + "\n"
    (place / "niwaki-demo/data").mkdir()
    for name in ("train.tsv", "dev.tsv", "niwaki-demo/data/train.tsv", "niwaki-demo/data/eval.tsv"):
        (place / name).write_text(table)
    (place / "reviews.csv").write_text(table.replace("\t", ",").replace("sentence,label", "review,verdict"))
    (place / "first.txt").write_text(" ".join(SENTENCES * 40))
    (place / "second.txt").write_text(" ".join(SENTENCES[::-1] * 20))
    (place / "sentences.txt").write_text("\n".join(SENTENCES * 6))
    pairs = [f"{SENTENCES[i % 4]}\t{SENTENCES[i % 3]}\t{i % 5}.5" for i in range(12)]
    (place / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]))
    for name in ("train.conll", "dev.conll"):
        (place / name).write_text("a O\ngood O\nfilm B-ART\nis O\nbright O\n\n" * 8)
    question = {"query": "the film is", "choices": ["good", "very dull"], "gold": 0}
    (place / "questions.jsonl").write_text("\n".join([json.dumps(question)] * 3))


@pytest.fixture
def reader(place, typed, monkeypatch):
    """Do what a page says; what it needs of other pages is done before."""
    monkeypatch.chdir(place)

    def make(text: str, own: str | None = None) -> None:
        for out, words in MAKERS.items():
            if out != own and not (place / out).exists() and re.search(rf"(?<![\w-]){re.escape(out)}(?![\w.-])", text):
                run(words)

    def run(words: list[str]) -> None:
        out = out_of(words)
        line = " ".join(words)
        if words[0] == "niwaki":
            parse(words)
        if reason(line):
            return
        assert words[0] == "niwaki", f"not run, and no reason given: {line}"
        if out is not None:
            assert MAKERS[out] == words, f"two commands write {out}"
        if out is None or not (place / out).exists():
            make(line, out)
            status, _, err = typed(place, *words[1:])
            assert status == 0, f"{line}\n{err}"

    def python(block: str, names: dict[str, object]) -> None:
        code = compile(block, "page", "exec")
        if not reason(block):
            make(block)
            exec(code, names)

    return run, python


@pytest.mark.filterwarnings("ignore::UserWarning")  # what a library says of so small a training
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_works(place, reader, page):
    run, python = reader
    text = PAGES[page]
    for block in re.findall(r"^```yaml title=\"(.+?)\"\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (place / block[0]).write_text(block[1])
    for words in commands(text):
        run(words)
    names: dict[str, object] = {"loader": batches(labels=2)} if "data=loader" in text else {}
    for block in fences(text, "python"):
        python(block, names)


def test_the_first_hour(place, reader):
    run, python = reader
    run(MAKERS["half"])
    if not (place / "niwaki-demo" / "half").exists():
        (place / "niwaki-demo" / "half").symlink_to(place / "half")
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs of the notebook must be stripped"
            python("".join(cell["source"]), names)


def test_nothing_is_left_out_without_need():
    """Every reason is used, and every flag that a page names is one."""
    everything = "\n".join(PAGES.values())
    assert [word for word in NOT_RUN if word not in everything] == []
    groups = [typer.main.get_command(app)]
    known = set(OTHER_FLAGS)
    while groups:
        command = groups.pop()
        groups += getattr(command, "commands", {}).values()
        known |= {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", everything))
    assert named - known == set()
