"""Data as a user names them on the command line: label names, splits, any dialect; one line where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.cli import _spread
from tiny import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    bare, named = tiny(labels=2), tiny(labels=2)
    named.config.id2label, named.config.label2id = {0: "NEGATIVE", 1: "POSITIVE"}, {"NEGATIVE": 0, "POSITIVE": 1}
    niwaki.save(bare, place / "bare", tiny_tokenizer())
    niwaki.save(named, place / "named", tiny_tokenizer())
    (place / "words.csv").write_text("text;label\n" + "a good film;pos\nthe dull plot;neg\n" * 3)
    (place / "target.csv").write_text("text,target\n" + "a good film,1\nthe dull plot,0\n" * 3)
    return place


@pytest.fixture
def command(place: Path, typed: Any) -> Any:
    """Run a command where these files are: exit status and error lines."""

    def run(*words: str) -> tuple[int, str]:
        status, _, err = typed(place, *words)
        return status, err

    return run


EVAL = ["eval", "--model", "bare", "--eval-data", "target.csv"]
SCORE = ["--head-score", "random", "--neuron-score", "random", "--layer-score", "random", "--weight-score", "magnitude"]


def score(model: str, data: str, out: str, *more: str) -> list[str]:
    return ["score", "--model", model, "--train-data", data, "--out", out, *SCORE, *more]


def test_names_of_outputs_are_given_on_the_command_line(command: Any, place: Path) -> None:
    status, said = command(*score("bare", "words.csv", "unnamed"))
    assert status == 2
    assert "LABEL_0, LABEL_1 (or 0 to 1), got 'pos' in 'words.csv'; --label-names gives the names" in said
    status, said = command(*score("bare", "words.csv", "scored", "--label-names", "pos", "neg", "--seed", "1"))
    assert status == 0, said
    assert "train: labels pos, neg" in said
    assert "words.csv: 6 rows, text text, label label; a semicolon between columns, quoted" in said
    found = json.loads((place / "scored" / "scores.json").read_text())
    assert found["request"]["label_names"] == ["pos", "neg"]


def test_classes_of_a_data_set_in_another_order(command: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["positive", "negative"])})

    def load_dataset(name: str, config: str | None = None, *, split: str) -> Dataset:
        assert (name, config, split) == ("someone/reviews", "plain", "held")
        return Dataset.from_dict({"sentence": ["a good film", "dull"], "label": [0, 1]}, features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    asked = ["--train-split", "held", "--data-config", "plain"]
    status, said = command(*score("named", "someone/reviews", "hub", *asked))
    assert status == 0, said
    assert "train: labels negative is NEGATIVE, positive is POSITIVE" in said
    found = json.loads((place / "hub" / "scores.json").read_text())
    assert found["data"]["train"]["split"] == "held"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["eval", "--model", "bare", "--eval-data", "target.csv"],
            "got none in 'target.csv' among text, target (with a",
        ),
        (
            ["eval", "--model", "bare", "--eval-data", "words.csv", "--eval-split", "a"],
            "eval_split must be asked of a Hub",
        ),
        (score("bare", "words.csv", "no", "--label-names", "a", "b", "c"), "label_names must be the model's 2, got 3"),
        (score("bare", "words.csv", "no", "--label-names", "a", "a"), "label_names must differ from each other"),
    ],
)
def test_what_is_wrong_with_data_is_one_line(command: Any, place: Path, words: list[str], said: str) -> None:
    status, err = command(*words, *([] if "--out" in words else ["--out", "no"]))
    lines = [line for line in err.splitlines() if line.startswith("niwaki:")]
    assert (status, len(lines)) == (2, 1)
    assert said in lines[0]
    assert not (place / "no").exists()


def test_a_flag_of_several_words_takes_numbers_below_zero() -> None:
    words = ["score", "--label-names", "-1", "1", "--seed", "-1", "--text-columns", "a", "b"]
    flags = ["--label-names", "-1", "--label-names", "1", "--seed", "-1", "--text-columns", "a", "--text-columns", "b"]
    assert _spread(words) == ["score", *flags]
