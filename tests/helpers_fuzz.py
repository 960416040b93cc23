"""What may go wrong with what a user gives: files of random damage, random requests; and what may come of it.

Each kind of input is a function of Hypothesis's `data`: it makes one in a folder, gives it to Niwaki, and lets through
nothing but success and a `NiwakiError` of one line. `tests/unit/test_fuzz.py` tries a few of each,
`tests/stress/fuzz.py` thousands.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import yaml
from hypothesis import strategies as st

import niwaki
from helpers_text import letter_tokenizer
from niwaki.checkpoint import load_tokenizer
from niwaki.cli import main
from niwaki.config import STAGES, Recipe, Structured, read_recipe, recipe_to_dict
from niwaki.data import read_table
from niwaki.errors import NiwakiError
from niwaki.run import to_rows
from tiny import tiny, with_lora

SECONDS, SLACK = 20, 64 * 2**20
"""A case that takes longer hangs; bytes of memory that a case may take beside twice its input and the model."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, -(2**31), 2**63, 10**30, 0.5, -0.1, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "0", "a", "auto", "none", "../../x", "/etc/passwd", "\0", "\u2028", "é\n\t", "x" * 5000]),
    st.text(max_size=8),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=5), SCALARS, max_size=3),
    st.builds(json.loads, st.just("[[[[[[[[]]]]]]]]")),  # a new one each time: it may be changed in its turn
)


INSERTED = [b'"', b"\0", b"\t", b"\n\n", b"\xff\xfe", b"," * 9, b"9" * 99]


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes after one to three accidents."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(found) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "insert", "remove", "double", "encode"])):
            case "flip" if found:
                found[place] ^= draw(st.integers(1, 255))
            case "cut":
                del found[place:]
            case "insert":
                found[place:place] = draw(st.binary(max_size=8) | st.sampled_from(INSERTED))
            case "remove":
                del found[place : place + draw(st.integers(1, 40))]
            case "double":
                found[place:place] = found[place : place + draw(st.integers(1, 400))]
            case _:
                encoding = draw(st.sampled_from(["utf-16", "utf-32-be", "utf-8-sig", "latin-1"]))
                found = bytearray(bytes(found).decode("utf-8", "replace").encode(encoding, "replace"))
    return bytes(found)


@st.composite
def damaged_values(draw: Any, values: Any) -> Any:
    """Plain values of which one to three, anywhere, are others, are gone, or are new."""
    found = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 3))):
        place = found
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            match draw(st.sampled_from(["change", "remove", "add"])):
                case "remove":
                    del place[key]
                case "add" if isinstance(place, dict):
                    place[draw(st.text(max_size=5))] = draw(VALUES)
                case _:
                    place[key] = draw(VALUES)
            break
    return found


class Hangs(BaseException):
    """A case took too long."""


@contextmanager
def allowed(folder: Path, *, model_bytes: int = 0) -> Iterator[None]:
    """Let a `NiwakiError` of one line through, and nothing that hangs, leaves files or takes memory."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise Hangs

    before = sorted(folder.rglob("*"))
    given = sum(path.stat().st_size for path in before if path.is_file())
    resident = _resident("VmRSS")
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    said = "nothing"
    try:
        yield
    except NiwakiError as error:
        said = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert len(said.splitlines()) == 1, repr(said)
    assert sorted(folder.rglob("*")) == before
    assert _resident("VmHWM") - resident <= 2 * given + 2 * model_bytes + SLACK


def _resident(key: str) -> int:
    """Bytes of memory: VmRSS as it is, after which VmHWM is the most from now on. 0 where Linux does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text(encoding="utf-8").splitlines()
    if key == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


@contextmanager
def _copy_of(source: Path) -> Iterator[Path]:
    """A copy of a folder, for one case."""
    with tempfile.TemporaryDirectory(prefix="niwaki-fuzz-") as place:
        folder = Path(place) / "given"
        shutil.copytree(source, folder)
        yield folder


class Given:
    """Whole files of every kind, to be damaged."""

    def __init__(self, place: Path) -> None:
        self.tokenizer, self.model = letter_tokenizer(), tiny(labels=2, layers=2)
        niwaki.save(self.model, place / "model", self.tokenizer)
        niwaki.save(self.model, place / "shards", self.tokenizer, max_shard_size=20_000)
        with_lora(tiny(labels=2, layers=2)).save_pretrained(str(place / "adapter" / "lora"))
        niwaki.save(self.model, place / "adapter" / "base")
        config = place / "adapter" / "lora" / "adapter_config.json"
        values = json.loads(config.read_text("utf-8"))
        values |= {"base_model_name_or_path": "base", "target_modules": sorted(values["target_modules"])}
        config.write_text(json.dumps(values), "utf-8")
        rows = [{"sentence": f'a b {"c d " * n}"e"', "label": n % 2} for n in range(6)]
        frame = pd.DataFrame(rows)
        data = place / "data"
        data.mkdir()
        frame.to_csv(data / "data.tsv", sep="\t", index=False)
        frame.to_csv(data / "data.csv", index=False)
        frame.to_parquet(data / "data.parquet")
        (data / "data.json").write_text(json.dumps(rows), "utf-8")
        (data / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        (data / "data.txt").write_text("a b\nc d e\n", "utf-8")
        (data / "data.conll").write_text("a B-X\nb O\n\nc O\n", "utf-8")
        self.place = place
        for path in data.iterdir():  # what is imported for it stays
            read_table(str(path))

    def data_file(self, data: st.DataObject) -> None:
        """A damaged data file is read and cut into rows."""
        source = data.draw(st.sampled_from(sorted((self.place / "data").iterdir())))
        content = source.read_bytes()
        if data.draw(st.booleans()):
            content = content.replace(b"a b", b"a b" * data.draw(st.sampled_from([1, 20_000])), 1)
        with tempfile.TemporaryDirectory(prefix="niwaki-fuzz-") as place:
            path = Path(place) / source.name
            path.write_bytes(data.draw(damaged(content)))
            with allowed(Path(place)):
                to_rows(read_table(str(path)), self.model, self.tokenizer, 16)

    def checkpoint(self, data: st.DataObject) -> None:
        """A folder of a model with one damaged file is loaded."""
        self._damaged_folder(data, data.draw(st.sampled_from(["model", "shards"])), lambda folder: niwaki.load(folder))

    def adapter(self, data: st.DataObject) -> None:
        """A damaged adapter beside its base is loaded."""
        self._damaged_folder(data, "adapter", lambda folder: niwaki.load(folder / "lora"), "lora")

    def tokens(self, data: st.DataObject) -> None:
        """A damaged tokenizer is loaded, and cuts a text."""
        self._damaged_folder(data, "model", lambda folder: load_tokenizer(folder)("a b c"), only="tokenizer")

    def _damaged_folder(
        self, data: st.DataObject, kind: str, act: Callable[[Path], object], inside: str = "", only: str = ""
    ) -> None:
        with _copy_of(self.place / kind) as folder:
            files = [path for path in sorted((folder / inside).iterdir()) if path.is_file() and only in path.name]
            path = data.draw(st.sampled_from(files))
            if path.suffix == ".json" and data.draw(st.integers(0, 3)):
                path.write_text(json.dumps(data.draw(damaged_values(json.loads(path.read_text("utf-8"))))), "utf-8")
            elif path.suffix == ".safetensors" and data.draw(st.booleans()):
                path.write_bytes(_damaged_header(data, path.read_bytes()))
            else:
                path.write_bytes(data.draw(damaged(path.read_bytes())))
            with allowed(folder, model_bytes=path.stat().st_size):
                act(folder)

    def recipe(self, data: st.DataObject) -> None:
        """A damaged recipe is read."""
        stage = data.draw(st.sampled_from([{"kind": name} for name in STAGES]))
        whole = recipe_to_dict(
            Recipe(model="m", train_data="t", eval_data="e", out="o", stages=(Structured(flops=0.5),))
        )
        found = data.draw(damaged_values({**whole, "stages": [*whole["stages"], stage]}))
        text = yaml.safe_dump(found).encode()
        with tempfile.TemporaryDirectory(prefix="niwaki-fuzz-") as place:
            path = Path(place) / "recipe.yaml"
            path.write_bytes(data.draw(damaged(text)) if data.draw(st.booleans()) else text)
            with allowed(Path(place)):
                read_recipe(path)

    def command_line(self, data: st.DataObject) -> None:
        """Random words are given to the command, with data that are not there."""
        words = data.draw(st.sampled_from(COMMANDS)).split()
        for flag in data.draw(st.lists(st.sampled_from(FLAGS), max_size=8)):
            words += [f"--{flag}", NOWHERE.get(flag) or str(data.draw(SCALARS))]
        with tempfile.TemporaryDirectory(prefix="niwaki-fuzz-") as place:
            words = [word.replace("\0", "") for word in words]
            with allowed(Path(place)):
                status, said = command(Path(place), words)
                assert status in (2, 3), (status, words)
                assert len(said.strip().splitlines()) == 1, (said, words)
                assert len(said) < 1100, words


def command(folder: Path, words: list[str]) -> tuple[int, str]:
    """Exit status and standard error of the command with these words, in `folder` and in this process."""
    arguments, errors = sys.argv, io.StringIO()
    sys.argv = ["niwaki", *words]
    try:
        with chdir(folder), redirect_stderr(errors), redirect_stdout(io.StringIO()):
            main()
    except SystemExit as stopped:
        return int(stopped.code or 0), errors.getvalue()
    finally:
        sys.argv = arguments
    return 0, errors.getvalue()


def _damaged_header(data: st.DataObject, content: bytes) -> bytes:
    """A safetensors file whose header says something else of its tensors."""
    size = int.from_bytes(content[:8], "little")
    header = data.draw(damaged_values(json.loads(content[8 : 8 + size])))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


COMMANDS = (
    *("prune structured", "prune layer-adaptive", "prune dynamic", "prune vocabulary"),
    *("score", "eval", "finetune", "export", "run", "report"),
)
FLAGS = (
    *("model", "train-data", "eval-data", "out", "flops", "sparsity", "seed", "batch-size", "head-score", "pattern"),
    *("text-columns", "threads", "to", "dtype", "task", "max-memory", "overwrite", "restart", "tasks", "limit"),
)
NOWHERE = {"model": "./nowhere", "train-data": "nowhere.tsv", "eval-data": "nowhere.tsv"}
KINDS = ("recipe", "command_line", "data_file", "checkpoint", "adapter", "tokens")
