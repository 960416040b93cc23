"""Several labels a row: how they are written, what cannot be told, what is measured."""

from __future__ import annotations

import json

import pytest
import torch

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.data import Batches, read_table
from niwaki.data.several import several_ids, several_names
from niwaki.evaluate import quality
from niwaki.run import to_rows
from niwaki.run.rows import Cut, cut_table
from tiny import tiny

IDS = {"joy": 0, "love": 1, "anger": 2}


def table(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": "good", "labels": labels}) for labels in rows), encoding="utf-8")
    return read_table(str(path))


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([["joy"], ["anger", "love"], []], [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
        ([[0], [2, 1]], [[1, 0, 0], [0, 1, 1]]),
        ([[1, 0, 0], [0, 1, 1]], [[1, 0, 0], [0, 1, 1]]),
        (["joy|love", "anger"], [[1, 1, 0], [0, 0, 1]]),
        (["joy, love", "anger"], [[1, 1, 0], [0, 0, 1]]),
    ],
)
def test_names_numbers_and_marks(tmp_path, rows, wanted):
    assert several_ids(table(tmp_path, rows), IDS) == wanted


def test_a_column_for_each_label(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,joy,love,anger\ngood,1,0,0\nbad,0,true,1\nfilm,0,0,0\n")
    found = read_table(str(path), label_column="joy, love,anger")
    assert found.several
    assert several_ids(found, IDS) == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert several_names(found) == ["joy", "love", "anger"]
    path.write_text("text,joy,love\ngood,1,0\nbad,2,1\n")
    with pytest.raises(niwaki.RequestError, match=r"'joy' of .* must hold 0 or 1 in every row, got '2' in row 2"):
        read_table(str(path), label_column="joy,love")
    with pytest.raises(niwaki.RequestError, match="label_column must be among text, joy, love"):
        read_table(str(path), label_column="joy,hate")


def test_columns_for_some_outputs_only_are_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,joy,love,anger\ngood,1,0,0\nbad,0,1,1\n")
    for columns, lacking in (("joy,love", "anger"), ("anger, joy", "love")):
        said = f"label_column must name a column of 0 and 1 for each of the model's outputs, got {columns} without"
        with pytest.raises(niwaki.RequestError, match=f"{said} {lacking} in"):
            several_ids(read_table(str(path), label_column=columns), IDS)
    found = several_ids(read_table(str(path), label_column="anger,joy,love"), IDS)
    assert found == [[1, 0, 0], [0, 1, 1]]  # their order is nothing


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["joy"], ["anger", "joy"]], "labels joy, anger; no row is love"),
        ([[2], [0]], "labels 0 is joy, 2 is anger; no row is love"),
        ([[1, 0, 0], [0, 1, 1]], "labels in the order of the model's outputs"),
        (["joy|love", "anger"], "labels joy, love, anger"),
    ],
)
def test_it_is_said_which_label_became_which(tmp_path, rows, said):
    model = tiny()
    model.config.problem_type, model.config.id2label = "multi_label_classification", dict(enumerate(IDS))
    assert str(cut_table(table(tmp_path, rows), model, tiny_tokenizer(), Cut(8), "train")) == said


def test_a_name_may_hold_a_comma_where_marks_stand_between_names(tmp_path):
    found = table(tmp_path, ["joy, pure|love", "joy, pure", "love"])
    assert several_names(found) == ["joy, pure", "love"]
    assert several_ids(found, {"love": 0, "joy, pure": 1}) == [[1, 1], [0, 1], [1, 0]]


def test_commas_between_names(tmp_path):
    """In a column `labels` they make a list for a new head, elsewhere they may be part of a name."""
    for column, several in (("labels", True), ("label", False)):
        path = tmp_path / f"{column}.csv"
        path.write_text(f'text,{column}\ngood,"joy, love"\nbad,anger\n')
        assert read_table(str(path)).several is several
    assert several_names(read_table(str(tmp_path / "labels.csv"))) == ["anger", "joy", "love"]


def test_a_label_that_the_model_does_not_have(tmp_path):
    with pytest.raises(niwaki.RequestError, match=r"joy, love, anger, got 'fear'.*--label-names"):
        several_ids(table(tmp_path, [["joy"], ["fear"]]), IDS)


def test_names_of_a_new_head(tmp_path):
    found = table(tmp_path, [["love"], ["anger", "joy"]])
    assert found.several
    assert several_names(found) == ["anger", "joy", "love"]
    with pytest.raises(niwaki.RequestError, match="at least two labels"):
        several_names(table(tmp_path, [["love"], ["love"]]))


def test_lists_are_refused_by_a_model_of_one_class(tmp_path):
    with pytest.raises(niwaki.RequestError, match="one name or number a row"):
        to_rows(table(tmp_path, [["LABEL_0"], ["LABEL_1"]]), tiny(), tiny_tokenizer(), 8)


def test_a_bar_in_the_name_of_a_class_is_no_mark(tmp_path):
    model = tiny(labels=2)
    model.config.id2label = {0: "sci-fi|horror", 1: "drama"}
    rows = to_rows(table(tmp_path, ["drama", "sci-fi|horror"]), model, tiny_tokenizer(), 8)
    assert [row["labels"] for row in rows] == [1, 0]
    with pytest.raises(niwaki.RequestError, match="labels must be one name or number a row"):
        to_rows(table(tmp_path, ["drama", "sci-fi|drama"]), model, tiny_tokenizer(), 8)


def test_what_is_measured(tmp_path):
    """Checked by hand: of three rows two are right in all labels; of four labels three are found, and one is wrong."""
    model = tiny()
    model.config.problem_type = "multi_label_classification"
    model.config.id2label = {index: name for name, index in IDS.items()}
    rows = to_rows(table(tmp_path, [["joy"], ["love", "anger"], ["love"]]), model, tiny_tokenizer(), 8)
    batches = Batches(rows, tiny_tokenizer(), 8)
    says = torch.tensor([[5.0, -5, -5], [-5, 5, 5], [-5, -5, 5]])
    model.forward = lambda **_: type("Output", (), {"logits": says})()  # type: ignore[method-assign]
    found = quality(model, batches)
    assert found["subset_accuracy"] == pytest.approx(2 / 3)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
