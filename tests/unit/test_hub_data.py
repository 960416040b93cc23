"""Data sets of the Hub: names of classes are kept, splits and configurations are asked for or named; no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from niwaki.config import Evaluation, Finetune, Recipe
from niwaki.data import class_ids, read_table
from niwaki.errors import RequestError
from niwaki.run.inputs import read_data

NAMES = ["positive", "negative"]
FEATURES = Features({"sentence": Value("string"), "label": ClassLabel(names=NAMES)})


def split(labels: list[int]) -> Dataset:
    return Dataset.from_dict({"sentence": [f"film {i}" for i in range(len(labels))], "label": labels}, FEATURES)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple]]:
    """Stand in for the Hub: a data set with these splits; what was asked of it."""

    def serve(**splits: Dataset) -> list[tuple]:
        asked: list[tuple] = []

        def load_dataset(name: str, config: str | None = None, *, split: str) -> Dataset:
            asked.append((name, config, split))
            if split not in splits:
                raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
            return splits[split]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


class _OwnError(Exception):
    """A client's own kind of failure, of no common kind."""


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: Any, **__: Any) -> Dataset:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as error:
        ask()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_of_classes_are_the_labels(hub: Callable) -> None:
    hub(train=split([0, 1, 0]))
    table = read_table("someone/reviews")
    assert table.labels == ["positive", "negative", "positive"]
    assert table.classes == tuple(NAMES)
    assert class_ids(table, {"NEGATIVE": 0, "POSITIVE": 1}) == {"positive": 1, "negative": 0}


def test_classes_may_be_called_like_numbers(hub: Callable) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["1.0", "2.0"])})
    hub(train=Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features))
    table = read_table("someone/reviews")
    assert table.labels == ["2.0", "1.0"]
    assert class_ids(table, {"LABEL_0": 0, "LABEL_1": 1}) == {"2.0": 1, "1.0": 0}


def test_a_test_set_whose_labels_are_held_back_has_none(hub: Callable, tmp_path: Path) -> None:
    hub(test=split([-1, -1]), train=split([0, -1]))
    assert read_table("someone/reviews", hub_split="test").labels is None
    assert "got 1 of 2 rows without" in refused(lambda: read_table("someone/reviews"))
    assert "got 2 of 2 rows without" in refused(
        lambda: read_table("someone/reviews", hub_split="test", label_column="label")
    )
    (tmp_path / "test.jsonl").write_text('{"tokens": ["a"], "ner_tags": null}', encoding="utf-8")
    assert read_table(str(tmp_path / "test.jsonl")).labels is None


def test_names_of_classes_are_kept_in_files_that_datasets_wrote(tmp_path: Path) -> None:
    split([0, 1, 0]).to_parquet(tmp_path / "train.parquet")
    table = read_table(str(tmp_path / "train.parquet"))
    assert (table.labels, table.classes) == (["positive", "negative", "positive"], tuple(NAMES))


def test_a_folder_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str) -> DatasetDict:
        asked.append((name, config, split))
        return DatasetDict(train=globals()["split"]([0, 1]), test=globals()["split"]([1]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_table(str(tmp_path), split="validation").labels == ["negative"]
    assert asked == [(str(tmp_path), None, "validation"), (str(tmp_path), None, "test")]


def test_without_validation_the_test_split_is_taken_and_said(hub: Callable, capsys: pytest.CaptureFixture) -> None:
    hub(train=split([0, 1]), test=split([1, 1]))
    request = Evaluation(model="m", out="o", eval_data="someone/reviews")
    table = read_data(request, "someone/reviews", "validation", quiet=False)
    assert (table.split, table.labels) == ("test", ["negative", "negative"])
    assert table.describe()["split"] == "test"
    said = capsys.readouterr().err
    assert "validation: someone/reviews has no split validation, test is taken" in said
    assert "someone/reviews (test): 2 rows" in said


def test_a_split_is_asked_for_by_name(hub: Callable) -> None:
    asked = hub(train=split([0, 1]), validation=split([0]), extra=split([1]))
    options: dict[str, Any] = {"model": "m", "out": "o", "train_data": "a/b", "eval_data": "a/b"}
    request = Recipe(**options, stages=(Finetune(),), train_split="extra", eval_split="train", data_config="c")
    assert read_data(request, "a/b", "train", quiet=True).labels == ["negative"]
    assert read_data(request, "a/b", "validation", quiet=True).split == "train"
    assert asked == [("a/b", "c", "extra"), ("a/b", "c", "train")]


@pytest.mark.parametrize(
    ("splits", "role", "asked", "said"),
    [
        (("test", "dev"), "train", None, "train_split must be one of test, dev for 'a/b', got 'train'"),
        (("train", "dev"), "validation", None, "eval_split must be one of train, dev for 'a/b', got 'validation'"),
        (("train", "validation_a", "test"), "validation", None, "eval_split must be one of train, validation_a, test"),
        (("train", "test"), "validation", "held", "eval_split must be one of train, test for 'a/b', got 'held'"),
    ],
)
def test_a_split_that_is_not_there(hub: Callable, splits: tuple, role: str, asked: str | None, said: str) -> None:
    hub(**{name: split([0]) for name in splits})
    assert said in refused(lambda: read_table("a/b", split=role, hub_split=asked))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']\nExample"
            ),
            "data_config must be one of cola, sst2 for 'nyu-mll/glue', got None",
        ),
        (
            ValueError("BuilderConfig 'x' not found. Available: ['cola', 'sst2']"),
            "data_config must be one of cola, sst2",
        ),
        (ConnectionError("Couldn't reach\nthe Hub"), "train_data must be an existing file or a Hub data set, got"),
        (_OwnError("[Errno -2] Name or service\nnot known"), "Name or service not known"),
        (RuntimeError("Dataset scripts are no longer supported, but found glue.py"), "no longer supported"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_the_hub_says_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    failing(monkeypatch, error)
    assert said in refused(lambda: read_table("nyu-mll/glue"))


def test_what_is_asked_of_a_file_but_holds_for_the_hub_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,0\n")
    options: dict[str, Any] = {"model": "m", "out": "o", "eval_data": str(path)}
    for more, said in (
        ({"eval_split": "test"}, "eval_split must be asked of a Hub data set, got 'test' for the file"),
        ({"data_config": "sst2"}, "data_config must be asked of a Hub data set, got 'sst2' for files"),
    ):
        request = Evaluation(**options, **more)
        assert said in refused(lambda request=request: read_data(request, str(path), "validation", quiet=True))
    assert "data_config must be asked for glue" in refused(lambda: read_table("glue/sst2", config="sst2"))


def test_classes_of_words_and_of_several_labels(hub: Callable[..., list[tuple]], tmp_path: Path) -> None:
    """Lists of classes have names as one class has: tags of words, labels of which several hold."""
    tags = Features(
        {"tokens": datasets.List(Value("string")), "ner_tags": datasets.List(ClassLabel(names=["O", "B-X"]))}
    )
    words = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [0]]}, tags)
    hub(train=words)
    table = read_table("a/b")
    assert table.tagged
    assert (table.texts, table.labels, table.classes) == ([("a", "b"), ("c",)], [["O", "B-X"], ["O"]], ("O", "B-X"))
    words.to_parquet(str(tmp_path / "words.parquet"))
    assert read_table(str(tmp_path / "words.parquet")).labels == table.labels
    several = Features({"text": Value("string"), "labels": datasets.List(ClassLabel(names=["joy", "fear"]))})
    hub(train=Dataset.from_dict({"text": ["a", "b"], "labels": [[0, 1], []]}, several))
    table = read_table("a/b")
    assert table.several
    assert (table.labels, table.classes) == ([["joy", "fear"], []], ("joy", "fear"))


def test_questions_of_a_data_set(hub: Callable[..., list[tuple]]) -> None:
    row = {"id": "q1", "question": "what", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}
    hub(validation=Dataset.from_list([row]))
    table = read_table("a/b", split="validation")
    assert table.ids == ("q1",)
    assert table.labels == [[{"text": "b", "start": 2}]]


def test_bytes_of_the_hub_are_text(hub: Callable) -> None:
    hub(train=Dataset.from_dict({"text": [b"a", b"b"], "labels": [[b"x", b"y"], [b"x"]]}))
    table = read_table("a/b")
    assert (table.texts, table.labels) == ([("a",), ("b",)], [["x", "y"], ["x"]])
