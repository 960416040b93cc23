"""A column of labels is read in one way, as names or as numbers of outputs; what could be both is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from helpers_text import tiny_tokenizer
from niwaki.anatomy import CLASSIFIER
from niwaki.config import Finetune, Recipe, read_recipe, recipe_from_dict, recipe_to_dict, write_recipe
from niwaki.data import Table, class_ids, label_map, label_names, predicts_numbers, read_table
from niwaki.errors import RequestError
from niwaki.run import to_rows
from niwaki.run.heads import new_labels
from niwaki.run.inputs import Inputs, name_outputs_
from niwaki.run.likeness import Side, likeness
from niwaki.run.rows import Cut
from tiny import tiny

SENTIMENT = {"NEGATIVE": 0, "POSITIVE": 1}
STARS = {"1": 0, "2": 1, "3": 2}
CROSSED = {"1": 0, "0": 1}
BARE = {"LABEL_0": 0, "LABEL_1": 1}


def table(labels: list, classes: tuple[str, ...] | None = None) -> Table:
    texts = [("a good film",)] * len(labels)
    return Table("memory", None, len(labels), ("text",), "label", texts, labels, classes=classes)


def classifier(*names: str) -> PreTrainedModel:
    model = tiny(labels=len(names))
    model.config.id2label = dict(enumerate(names))
    return model


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["positive", "Negative"], SENTIMENT, [1, 0]),
        ([0, 1], SENTIMENT, [0, 1]),
        (["0", "1"], SENTIMENT, [0, 1]),
        (["1.0", "0.0"], SENTIMENT, [1, 0]),
        ([1.0, 0.0], SENTIMENT, [1, 0]),
        (["LABEL_1", "LABEL_0"], SENTIMENT, [1, 0]),
        (["label_1", "LABEL_0"], BARE, [1, 0]),
        ([" positive ", "negative"], SENTIMENT, [1, 0]),
        ([1, 2, 3], STARS, [0, 1, 2]),
        ([0, 1, 2], STARS, [0, 1, 2]),
        (["1", "2", "3"], STARS, [0, 1, 2]),
        ([0, 1], {"0": 0, "1": 1}, [0, 1]),
        ([-1, 1], {"-1": 0, "1": 1}, [0, 1]),
        ([True, False], BARE, [1, 0]),
        (["True", "False"], BARE, [1, 0]),
        ([True, False], {"true": 0, "false": 1}, [0, 1]),
        (["FALSE", "TRUE"], {"true": 0, "false": 1}, [1, 0]),
    ],
)
def test_a_column_is_read_as_names_or_as_numbers(labels: list, names: dict, ids: list) -> None:
    found = class_ids(table(labels), names)
    assert list(found.values()) == ids


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (["Positive", "positive"], SENTIMENT, "'Positive' and 'positive' for output 1"),
        ([1, "1.0"], SENTIMENT, r"'1' and '1\.0' for output 1"),
        (["7", "007"], {f"c{i}": i for i in range(9)}, "'7' and '007' for output 7"),
        (["1", "LABEL_1"], BARE, "'1' and 'LABEL_1' for output 1"),
        ([True, 1], SENTIMENT, "got True in"),
        ([True, 1], BARE, "got True in"),
        (["true", 1], {"false": 0, "true": 1}, "all names .* or all numbers of its outputs, got 'true' beside 1"),
        (["true", "True"], BARE, "'true' and 'True' for output 1"),
        ([True, False], SENTIMENT, "NEGATIVE, POSITIVE .* got True .*--label-names"),
        (["NEGATIVE", 1], SENTIMENT, "got 'NEGATIVE' beside 1"),
        (["NEGATIVE", "LABEL_1"], SENTIMENT, "got 'NEGATIVE' beside 'LABEL_1'"),
        ([0, 1], CROSSED, "could be either .* --label-names 1 0 reads them as names, --label-names 0 1 as numbers"),
        ([1, 2], STARS, "could be either .* --label-names 1 2 3 reads them as names"),
        ([0, 3], STARS, "got 3 beside 0"),
        (["neg", "pos"], SENTIMENT, "NEGATIVE, POSITIVE .* got 'neg' .*--label-names gives .* 2 .*have neg, pos"),
        ([[0, 1], [1]], SENTIMENT, "one name or number a row, got a list"),
        ([{"a": 1}], SENTIMENT, "one name or number a row, got a dict"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(labels: list, names: dict, said: str) -> None:
    with pytest.raises(RequestError, match=f"^labels must be .*({said})") as error:
        class_ids(table(labels), names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "names", "ids"),
    [
        (("positive", "negative"), SENTIMENT, {"positive": 1, "negative": 0}),
        (("positive", "negative"), BARE, {"positive": 0, "negative": 1}),
        (("positive", "negative"), {"0": 0, "1": 1}, {"positive": 0, "negative": 1}),
        (("0", "1"), CROSSED, {"0": 1, "1": 0}),
        (("1", "2", "3"), STARS, {"1": 0, "2": 1, "3": 2}),
        (("1", "2", "3"), {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, {"1": 0, "2": 1, "3": 2}),
    ],
)
def test_classes_that_a_data_set_names_are_names(classes: tuple, names: dict, ids: dict) -> None:
    assert class_ids(table(list(classes), classes), names) == ids


@pytest.mark.parametrize(
    ("classes", "names", "said"),
    [
        (("neg", "pos"), SENTIMENT, "got 'neg'"),
        (("1", "2"), {"bad": 0, "ok": 1, "good": 2}, "bad, ok, good .* got '1'"),
        (("a", "b", "c"), BARE, "got 'a'"),
    ],
)
def test_classes_of_a_data_set_are_never_numbers_of_another_model(classes: tuple, names: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        class_ids(table(list(classes), classes), names)


def test_names_that_the_user_gives_come_first() -> None:
    assert class_ids(table([0, 1]), CROSSED, named=True) == {"0": 1, "1": 0}
    assert class_ids(table([0, 1]), {"0": 0, "1": 1}, named=True) == {"0": 0, "1": 1}
    assert class_ids(table([0, 1]), {"neg": 0, "pos": 1}, named=True) == {"0": 0, "1": 1}
    model = classifier("LABEL_0", "LABEL_1")
    name_outputs_(model, ("pos", "neg"))
    rows = to_rows(table(["neg", "pos"]), model, tiny_tokenizer(), 8, named=True)
    assert [row["labels"] for row in rows] == [1, 0]
    assert model.config.id2label == {0: "pos", 1: "neg"}
    assert model.config.label2id == {"pos": 0, "neg": 1}


@pytest.mark.parametrize(
    ("model", "names", "said"),
    [
        (("distilbert", 2), ("a", "b", "c"), "label_names must be the model's 2, got 3: a b c"),
        (("distilbert", 1), ("a",), "a model of classes, got a"),
        (("llama", 2), ("a", "b"), "a model of classes, got a b"),
    ],
)
def test_names_that_the_model_has_no_outputs_for(model: tuple, names: tuple, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        name_outputs_(tiny(*model), names)


def test_names_of_a_config_are_those_by_number() -> None:
    model = classifier("positive", "negative")
    model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    rows = to_rows(table(["negative", "positive"]), model, tiny_tokenizer(), 8)
    assert [row["labels"] for row in rows] == [1, 0]


def test_it_is_said_which_classes_have_no_row() -> None:
    rows = [{"labels": 1}, {"labels": 1}]
    assert label_map(table([1, 1]), rows, SENTIMENT) == "1 is POSITIVE; no row is NEGATIVE"
    assert label_map(table([True, True]), rows, BARE) == "true is LABEL_1; no row is LABEL_0"


@pytest.mark.parametrize(
    ("given", "classes", "names"),
    [
        ([True, False, True], None, ["false", "true"]),
        (["3", "1", "2"], None, ["1", "2", "3"]),
        ([" b", "a"], None, ["a", "b"]),
        (["pos", "neg"], ("pos", "neutral", "neg"), ["pos", "neutral", "neg"]),
    ],
)
def test_names_of_a_new_head(given: list, classes: tuple | None, names: list) -> None:
    made = table(given, classes)
    assert label_names(made) == names
    ids = class_ids(made, {name: index for index, name in enumerate(names)})
    assert all(names[index] == str(text) for text, index in ids.items())


def test_booleans_are_not_numbers_to_predict() -> None:
    assert not predicts_numbers(table([True, False]))
    with pytest.raises(RequestError, match="finite numbers for a model with one output, got True"):
        to_rows(table([True]), classifier("LABEL_0"), tiny_tokenizer(), 8)


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (["1", "0"], [1, 0]),
        (["1.0", "0.0"], [1.0, 0.0]),
        (["1", "1.0"], ["1", "1.0"]),
        (["007", "12"], ["007", "12"]),
        (["2.40", "2.4"], [2.4, 2.4]),
        (["true", "false"], ["true", "false"]),
        (["1", "one"], ["1", "one"]),
    ],
)
def test_spellings_are_kept_where_numbers_would_lose_them(tmp_path: Path, written: list, labels: list) -> None:
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"a film,{label}\n" for label in written))
    assert read_table(str(tmp_path / "data.csv")).labels == labels


def test_a_row_without_a_token_is_refused() -> None:
    class Mute:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[5] if text.strip(".") else [] for text in texts]}

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 0

    given = Table("memory", None, 2, ("text",), None, [("a",), ("...",)], None)
    with pytest.raises(RequestError, match=r"a token in every row, got \('\.\.\.',\) as row 2 of 'memory'"):
        to_rows(given, classifier("a", "b"), Mute(), 8)


def request(**changes: Any) -> Recipe:
    options = {"model": "m", "out": "o", "train_data": "t", "eval_data": "e", "stages": (Finetune(),)}
    return Recipe(**options | changes)  # type: ignore[arg-type]


def test_names_and_splits_are_part_of_a_recipe(tmp_path: Path) -> None:
    asked = request(label_names=("0", "b"), train_split="a", eval_split="b", data_config="c")
    write_recipe(asked, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == asked
    plain = recipe_to_dict(asked)
    assert recipe_from_dict({**plain, "label_names": [0, "b"]}) == asked
    with pytest.raises(RequestError, match=r"label_names must be .*, got 'a b'"):
        recipe_from_dict({**plain, "label_names": "a b"})
    with pytest.raises(RequestError, match="label_names must differ from each other, got a b a"):
        request(label_names=("a", "b", "a"))


def test_outputs_in_another_order_are_not_compared():
    """Two models that call the same classes by other numbers agree on nothing that their numbers would show."""
    sides = []
    for names in (("no", "yes"), ("yes", "no"), ("yes", "no")):
        model = tiny(labels=2)
        name_outputs_(model, names)
        rows = [{"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1]}]
        sides.append(Side(model, Inputs(model, tiny_tokenizer(), 1, Cut(8), quiet=True), rows))
    assert likeness(sides[0], sides[1]) == {}
    assert likeness(sides[1], sides[2])["agreement"] == 1.0


@pytest.mark.parametrize(
    ("labels", "column", "said"),
    [
        (["0.5", "n/a", "1.25"], "label", "must hold numbers, with a decimal point, .* got 'n/a' in row 2"),
        (["0,5", "1,25", "3,0"], "label", "must hold numbers, with a decimal point, .* got '0,5' in row 1"),
        ([0.5, None, 1.5], "label", "got None in row 2"),
        (["1", "2", "many"], "score", "'score' of 'memory' must hold numbers, .* got 'many' in row 3"),
    ],
)
def test_most_of_a_column_of_numbers_is_no_class(labels: list, column: str, said: str) -> None:
    given = dataclasses.replace(table(labels), label_column=column)
    with pytest.raises(RequestError, match=said) as error:
        new_labels(request(), given, CLASSIFIER)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (["a", "b", "0.5"], None, ("0.5", "a", "b")),
        ([1, 0], None, ("0", "1")),
        (["yes, but", "no"], None, ("no", "yes, but")),
        ([0.5, 1.0, 0.25], None, ("",)),
        (["1.0", "0.5", "0.5"], ("0.5", "1.0"), ("0.5", "1.0")),  # a data set that names its classes so
        (["1.0", "1", "2.0"], None, ("1", "1.0", "2.0")),  # text, as no number of it is lost
    ],
)
def test_classes_of_a_new_head_are_what_they_were(labels: list, classes: tuple | None, names: tuple) -> None:
    found = new_labels(request(), table(labels, classes), CLASSIFIER)
    assert found is not None
    assert found.names == names


def test_names_of_the_model_in_another_order_are_refused() -> None:
    said = "label_names must be in the order in which the model names them itself, NEGATIVE POSITIVE"
    model = classifier(*SENTIMENT)
    with pytest.raises(RequestError, match=f"{said}, or other names, got POSITIVE NEGATIVE"):
        name_outputs_(model, ("POSITIVE", "NEGATIVE"))
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    name_outputs_(model, ("NEGATIVE", "POSITIVE"))
    name_outputs_(model, ("neg", "pos"))
    assert model.config.id2label == {0: "neg", 1: "pos"}
    bare = classifier("LABEL_0", "LABEL_1")
    name_outputs_(bare, ("LABEL_1", "LABEL_0"))
    assert bare.config.id2label == {0: "LABEL_1", 1: "LABEL_0"}


def test_what_the_error_says_to_ask_for_can_be_asked() -> None:
    """Names `1` and `0` can be read in two ways; both ways of settling that are taken."""
    with pytest.raises(RequestError, match="--label-names 1 0 reads them as names, --label-names 0 1 as numbers"):
        class_ids(table([0, 1]), CROSSED)
    for names, labels in ((("1", "0"), [1, 0]), (("0", "1"), [0, 1])):
        model = classifier("1", "0")
        name_outputs_(model, names)
        rows = to_rows(table([0, 1]), model, tiny_tokenizer(), 8, named=True)
        assert [row["labels"] for row in rows] == labels
