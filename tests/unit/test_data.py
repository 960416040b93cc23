"""Every format gives the same table; what is wrong is said; batches are the same every time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers_text import tiny_tokenizer
from niwaki.data import (
    Batches,
    Table,
    encode,
    label_map,
    label_names,
    mean_length,
    predicts_numbers,
    read_table,
    sample,
)
from niwaki.errors import RequestError

SENTENCES = ["a good film", 'a "bad', "007"]
FILE_FORMATS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")


def write(folder: Path, suffix: str, frame: pd.DataFrame) -> str:
    path = folder / f"data{suffix}"
    match suffix:
        case ".tsv":
            lines = ["\t".join(map(str, row)) for row in [list(frame.columns), *frame.values.tolist()]]
            path.write_text("\n".join(lines) + "\n", "utf-8")
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            frame.to_json(path, orient="records", lines=suffix == ".jsonl")
    return str(path)


def table(labels: list | None, column: str | None = "label") -> Table:
    count = len(labels) if labels is not None else 2
    return Table("memory", None, count, ("text",), column, [("a good film",)] * count, labels)


@pytest.mark.parametrize(
    ("columns", "texts", "labels"),
    [
        ({"sentence": ["é".encode(), b"b"], "label": [b"1", b"0"]}, [("é",), ("b",)], [1, 0]),
        ({"sentence": pd.Categorical([b"a"]), "label": [[b"x", b"y"]]}, [("a",)], [["x", "y"]]),
        ({"tokens": [[b"a", b"b"], [b"c"]], "tags": [[b"O", b"X"], [b"O"]]}, [("a", "b"), ("c",)], [["O", "X"], ["O"]]),
        ({"query": [b"q"], "choices": [[b"a", b"b"]], "gold": [b"B"]}, [("q", "a", "b")], [1]),
        (
            {"question": [b"q"], "context": [b"a b"], "answers": [{"text": [b"b"], "answer_start": [2]}]},
            [("q", "a b")],
            [[{"text": "b", "start": 2}]],
        ),
        ({"sentence": ["a"], "label": [pd.Timestamp("2020-01-01")]}, [("a",)], ["2020-01-01 00:00:00"]),
        ({"sentence": ["a"], "label": [[pd.Timestamp("2020-01-01")]]}, [("a",)], [["2020-01-01 00:00:00"]]),
    ],
)  # fmt: skip
def test_bytes_and_dates_of_parquet_are_text(tmp_path, columns, texts, labels):
    read = read_table(write(tmp_path, ".parquet", pd.DataFrame({**columns, "image": [b"\xff"] * len(texts)})))
    assert (read.texts, read.labels) == (texts, labels)


@pytest.mark.parametrize(
    ("suffix", "columns", "said"),
    [
        (".parquet", {"text": [b"a", b"caf\xe9"]}, r"'caf\\udce9' in row 2 of 'text'"),
        (".jsonl", {"text": ["a", "b\ud83d"], "label": [0, 1]}, r"'b\\ud83d' in row 2 of 'text'"),
        (".jsonl", {"text": ["a", "b"], "label": ["x", "\ud800"]}, r"'\\ud800' in row 2 of 'label'"),
        (".json", {"tokens": [["a", "\ud800"]], "tags": [["O", "O"]]}, r"'\\ud800' in row 1 of 'tokens'"),
        (".json", {"question": ["a"], "choices": [["b", "\ud800"]]}, r"'\\ud800' in row 1 of 'choices'"),
        (".json", {"text": ["a"], "\ud800": [1]}, r"'\\ud800'"),
    ],
)
def test_text_that_cannot_be_written_is_refused(tmp_path, suffix, columns, said):
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        pd.DataFrame(columns).to_parquet(path)
    else:
        path.write_text(
            json.dumps([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        )
    with pytest.raises(RequestError, match=f"train_data must .*{said}"):
        read_table(str(path))


@pytest.mark.parametrize("suffix", FILE_FORMATS)
@pytest.mark.parametrize("labels", [[0, 1, 1], ["no", "yes", "no"], [0.5, 1.25, 3.0]])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str, labels: list) -> None:
    source = write(tmp_path, suffix, pd.DataFrame({"sentence": SENTENCES, "label": labels}))
    read = read_table(source)
    assert read.texts == [(sentence,) for sentence in SENTENCES]
    assert read.labels == labels
    assert [type(label) for label in read.labels or []] == [type(label) for label in labels]
    assert read.describe() == {
        "path": source,
        "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        "rows": 3,
        "text_columns": ["sentence"],
        "label_column": "label",
    }
    assert str(read) == f"{source}: 3 rows, text sentence, label label"
    json.dumps(read.labels)


def test_a_line_of_txt_ends_with_a_newline_only(tmp_path: Path) -> None:
    lines = ["a\u2028good film", "the\x0cplot", "is\x85dull \x1c."]
    (tmp_path / "lines.txt").write_bytes("\r\n".join(lines).encode())
    assert read_table(str(tmp_path / "lines.txt")).texts == [(line,) for line in lines]


def test_txt_is_one_text_a_line_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "lines.TXT"
    path.write_text("a good film\n\nthe plot\n", "utf-8")
    read = read_table(str(path))
    assert (read.texts, read.labels) == ([("a good film",), ("the plot",)], None)
    assert "labels" not in encode(read, tiny_tokenizer(), 16, None)[0]


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        (["sentence1", "sentence2", "sentence", "label"], ("sentence1", "sentence2"), "label"),
        (["premise", "hypothesis", "score", "label"], ("premise", "hypothesis"), "label"),
        (["question", "sentence", "score"], ("question", "sentence"), "score"),
        (["idx", "text"], ("text",), None),
    ],
)
def test_columns_are_recognised(tmp_path: Path, columns: list, texts: tuple, label: str | None) -> None:
    source = write(tmp_path, ".tsv", pd.DataFrame({name: ["1", "2"] for name in columns}))
    read = read_table(source)
    assert (read.text_columns, read.label_column) == (texts, label)


def test_columns_can_be_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sentence": ["x"], "b": ["y"], "label": [0], "gold": ["pos"]})
    read = read_table(write(tmp_path, ".csv", frame), ("b", "sentence"), "gold")
    assert (read.texts, read.labels) == ([("y", "x")], ["pos"])


def test_words_that_look_like_missing_values_are_kept(tmp_path: Path) -> None:
    read = read_table(write(tmp_path, ".tsv", pd.DataFrame({"text": ["NA", "null"], "label": ["None", "nan"]})))
    assert (read.texts, read.labels) == ([("NA",), ("null",)], ["None", "nan"])


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("none.tsv", None, {}, ["train_data", "existing file", "none.tsv"]),
        ("none.tsv", None, {"split": "validation"}, ["eval_data", "none.tsv"]),
        ("data.xls", "x", {}, ["train_data", ".parquet", "data.xls"]),
        ("data.tsv", "", {}, ["train_data", "at least one row"]),
        ("data.tsv", "sentence\tlabel\n", {}, ["train_data", "at least one row"]),
        ("data.jsonl", "{not json", {}, ["train_data", "can be read"]),
        ("data.json", '{"text": "a"}', {}, ["train_data", "list of objects"]),
        ("data.csv", "text,label\na,0,1\nb,1,1\n", {}, ["train_data", "more fields"]),
        ("data.csv", "a,b\nx,0\n", {}, ["text_columns", "a, b"]),
        ("data.csv", "text,b\nx,0\n", {"text_columns": ("body",)}, ["text_columns", "text, b", "'body'"]),
        ("data.csv", "text,b\nx,0\n", {"label_column": "gold"}, ["label_column", "text, b", "'gold'"]),
        ("data.csv", "text,label\nx,0\ny,\nz,\n", {}, ["label_column", "'label'", "2 of 3"]),
        ("data.csv", "text,label\n,0\ny,1\n", {}, ["text_columns", "'text'", "1 of 2"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str | None, options: dict, said: list) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(RequestError) as error:
        read_table(str(path), **options)
    assert all(part in str(error.value) for part in said)
    assert "\n" not in str(error.value)


def test_hub_data_set_is_asked_for_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*where: object, split: str) -> datasets.Dataset:
        asked.append((*where, split))
        return datasets.Dataset.from_dict({"sentence": ["a good film", "dull"], "label": [1, 0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read = read_table("glue/sst2", split="validation")
    assert (read.labels, read.sha256) == ([1, 0], None)
    read_table("someone/reviews")
    assert asked == [("glue", "sst2", "validation"), ("someone/reviews", None, "train")]


def test_hub_failure_is_a_request_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*where: object, split: str) -> datasets.Dataset:
        raise FileNotFoundError("no such\ndata set")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RequestError, match=r"train_data must be .* Hub data set, got 'no/such': no such data set"):
        read_table("no/such")


def test_labels_become_ids() -> None:
    tokenizer = tiny_tokenizer()

    def ids(labels: list, names: dict[str, int] | None) -> list:
        return [row["labels"] for row in encode(table(labels), tokenizer, 16, names)]

    assert ids(["Yes", "NO"], {"no": 0, "yes": 1}) == [1, 0]
    assert ids(["a", "A"], {"A": 0, "a": 1}) == [1, 0]
    assert ids([0, "1", 1.0], {"LABEL_0": 0, "LABEL_1": 1}) == [0, 1, 1]
    assert ids([1, 2.0], {"1": 0, "2": 1}) == [0, 1]
    assert ids([4, 0], None) == [4, 0]
    floats = encode(table([1, 2.5]), tokenizer, 16, None, regression=True)
    assert [row["labels"] for row in floats] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([1, 0, 1], {"NEGATIVE": 0, "POSITIVE": 1}, "0 is NEGATIVE, 1 is POSITIVE"),
        (["low", "HIGH"], {"high": 0, "low": 1}, "HIGH is high, low"),
        ([1, 2.0], {"1": 0, "2": 1}, "1, 2"),
    ],
)
def test_it_is_said_which_label_became_which(labels: list, names: dict, said: str) -> None:
    given = table(labels)
    assert label_map(given, encode(given, tiny_tokenizer(), 16, names), names) == said


@pytest.mark.parametrize(
    ("label", "names", "regression", "said"),
    [
        ("maybe", {"no": 0, "yes": 1}, False, "no, yes.*'maybe' in 'memory'"),
        (2, {"no": 0, "yes": 1}, False, "0 to 1.*2"),
        (-1, {"no": 0, "yes": 1}, False, "-1"),
        (0.5, {"no": 0, "yes": 1}, False, r"0\.5"),
        ("yes", None, False, "'yes'"),
        ("high", None, True, "finite.*'high'"),
        (float("inf"), None, True, "finite.*inf"),
    ],
)
def test_labels_that_the_model_does_not_have(label: object, names: dict | None, regression: bool, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        encode(table([label]), tiny_tokenizer(), 16, names, regression)


def test_pairs_are_encoded_together_and_cut() -> None:
    pair = Table("memory", None, 1, ("a", "b"), None, [("a good film", "the plot is dull")], None)
    tokenizer = tiny_tokenizer()
    (row,) = encode(pair, tokenizer, 32, None)
    assert row["input_ids"].count(tokenizer.sep_token_id) == 2
    assert len(encode(pair, tokenizer, 6, None)[0]["input_ids"]) == 6
    assert len(encode(pair, tokenizer, 4, None)[0]["input_ids"]) == 4
    with pytest.raises(RequestError, match=r"max_length must be at least 4, as the tokenizer adds 3 tokens .*, got 3"):
        encode(pair, tokenizer, 3, None)
    with pytest.raises(RequestError, match=r"max_length must be at least 3, as the tokenizer adds 2 tokens .*, got 1"):
        encode(table([1]), tokenizer, 1, {"0": 0, "1": 1})
    three = Table("memory", None, 1, ("a", "b", "c"), None, [("x", "y", "z")], None)
    with pytest.raises(RequestError, match=r"text_columns must be one or two, got a, b, c"):
        encode(three, tokenizer, 8, None)


def test_kinds_of_labels() -> None:
    assert predicts_numbers(table([0.5, 1.0]))
    assert predicts_numbers(table([1, 2], column="score"))
    assert not predicts_numbers(table([0.0, 1.0]))
    assert not predicts_numbers(table(["low", "high"], column="score"))
    assert not predicts_numbers(table(None, column=None))
    assert label_names(table([10, 2, 1.0, 2])) == ["1", "2", "10"]
    assert label_names(table(["b", "a", "b"])) == ["a", "b"]
    assert label_names(table(None)) == []


def rows(count: int = 10) -> list[dict]:
    texts = [(" ".join(["good"] * (1 + (7 * index) % count)),) for index in range(count)]
    made = Table("memory", None, count, ("text",), "label", texts, [index % 2 for index in range(count)])
    return encode(made, tiny_tokenizer(), 32, {"no": 0, "yes": 1})


def lengths(batches: Batches) -> list[int]:
    return [int(length) for batch in batches for length in batch["attention_mask"].sum(1)]


def test_batches_hold_every_row_once_and_repeat() -> None:
    tokenizer, given = tiny_tokenizer(), rows()
    real = [len(row["input_ids"]) for row in given]
    by_length = Batches(given, tokenizer, 4)
    in_order = Batches(given, tokenizer, 4, sort_by_length=False)
    shuffled = Batches(given, tokenizer, 4, shuffle_seed=3)
    assert [len(batch["input_ids"]) for batch in by_length] == [4, 4, 2]
    assert len(by_length) == 3
    assert lengths(by_length) == sorted(real)
    assert lengths(in_order) == real
    assert sorted(lengths(shuffled)) == sorted(real)
    assert lengths(shuffled) != real
    again = Batches(given, tokenizer, 4, shuffle_seed=3)
    assert lengths(shuffled) == lengths(shuffled) == lengths(again)
    assert lengths(shuffled) != lengths(Batches(given, tokenizer, 4, shuffle_seed=4))
    first = next(iter(by_length))
    assert first["labels"].dtype == torch.int64
    assert bool((first["input_ids"][first["attention_mask"] == 0] == tokenizer.pad_token_id).all())
    with pytest.raises(RequestError, match="batch_size must be at least 1, got 0"):
        Batches(given, tokenizer, 0)


def test_mean_length_counts_real_tokens_only() -> None:
    given = rows()
    expected = sum(len(row["input_ids"]) for row in given) / len(given)
    assert mean_length(Batches(given, tiny_tokenizer(), 4, sort_by_length=False)) == pytest.approx(expected)
    with pytest.raises(RequestError, match="at least one batch"):
        mean_length([])


def test_sample_is_a_repeatable_subset() -> None:
    given = list(range(50))
    assert sample(given, 10, 1) == sample(given, 10, 1)
    assert sample(given, 10, 1) != sample(given, 10, 2)
    assert len(set(sample(given, 10, 1))) == 10
    assert sample(given, 99, 1) == given


PLAIN = {"query": "is it", "choices": ["good", "bad"]}
FORMS = {
    "plain": ({**PLAIN, "answer": 1}, "answer"),
    "gold first": ({**PLAIN, "gold": 1, "answer": 0}, "gold"),
    "ARC": ({"question": "is it", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "answerKey"),
    "PIQA": ({"goal": "to open", "sol1": "pull", "sol2": "push", "label": 1}, "label"),
    "PIQA and more": ({"goal": "to open", "sol1": "pull", "sol2": "push", "label": 1, "answer": 0}, "label"),
    "plain and more": ({**PLAIN, "answer": 1, "answerKey": "A"}, "answer"),
}
"""Rows of every form that has choices, whose second choice is right, and the column that says so."""


@pytest.mark.parametrize("form", FORMS)
def test_choices_have_their_answer_in_a_column_of_their_own(tmp_path: Path, form: str) -> None:
    row, own = FORMS[form]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**row, "id": 7}))
    assert read_table(str(path)).labels == [1]
    assert read_table(str(path), label_column=own).labels == [1]
    for other in {*row, "id", "nowhere"} - {own}:
        with pytest.raises(
            RequestError, match=f"label_column must be '{own}' for questions of the form .*got '{other}'"
        ):
            read_table(str(path), label_column=other)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_questions_on_contexts_have_columns_of_their_own(tmp_path: Path, suffix: str) -> None:
    row = {"id": "1", "question": "is it", "context": "a film", "answers": {"text": ["film"], "answer_start": [2]}}
    asked = {"id": "1", "question": "is it", "answers": [{"text": "film", "answer_start": 2}]}
    nested = {"data": [{"title": "t", "paragraphs": [{"context": "a film", "qas": [asked]}]}]}
    path = tmp_path / f"data{suffix}"
    path.write_text(json.dumps(nested if suffix == ".json" else {**row, "label": 1}))
    wanted = [[{"text": "film", "start": 2}]]
    assert read_table(str(path), ("question", "context"), "answers").labels == wanted
    with pytest.raises(RequestError, match=r"label_column must be 'answers' for questions .* got 'label'"):
        read_table(str(path), label_column="label")
    with pytest.raises(RequestError, match=r"text_columns must be \('question', 'context'\) for .* got \('context',\)"):
        read_table(str(path), ("context",))
