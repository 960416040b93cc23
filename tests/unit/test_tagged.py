"""Words with tags: how files are read, which piece carries the tag, what cannot be told, what is measured."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertForTokenClassification

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.data import Batches, read_table
from niwaki.data.tagged import encode_tagged, of_entities, tag_names
from niwaki.evaluate import quality
from niwaki.run.rows import Cut, cut_table
from tiny import configs

NAMES = {"O": 0, "B-PER": 1, "I-PER": 2}


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_conll_columns_are_words_and_their_last_column(tmp_path):
    text = "-DOCSTART- -X- O O\n\ngood NN B-NP B-PER\nfilms NN I-NP I-PER\n\n\nnot RB O O\n"
    table = read_table(written(tmp_path, "a.conll", text))
    assert table.tagged
    assert table.rows == 2
    assert table.texts == [("good", "films"), ("not",)]
    assert table.labels == [["B-PER", "I-PER"], ["O"]]
    other = read_table(written(tmp_path, "b.conll", text), label_column="2")
    assert other.labels == [["NN", "NN"], ["RB"]]
    assert tag_names(other) == ["NN", "RB"]


def test_a_hash_can_be_a_word(tmp_path):
    table = read_table(written(tmp_path, "a.conll", "# a comment of a file\ngood O\n# B-PER\n"))
    assert table.texts == [("good", "#")]
    table = read_table(written(tmp_path, "b.conll", "# first\n# id = 1\ngood\tNN\tx\tO\n# is a bad\nfilm\tNN\tx\tO\n"))
    assert table.texts == [("good", "film")]


@pytest.mark.parametrize("column", [None, "2"])
def test_a_comment_may_have_as_many_columns_as_words_have(tmp_path, column):
    text = "# doc1\ngood O\nfilm B-PER\n\n# doc2\n# O\nbad O\n\n# B-LOC\n\nplot O\n# doc3\n"
    table = read_table(written(tmp_path, "a.conll", text), label_column=column)
    assert table.texts == [("good", "film"), ("#", "bad"), ("#",), ("plot", "#")]
    assert table.labels == [["O", "B-PER"], ["O", "O"], ["B-LOC"], ["O", "doc3"]]
    parts = "# doc1\ngood ADJ\nfilm NOUN\n\n# NOUN\nbad ADJ\n"  # a tag that stands elsewhere is one here
    assert read_table(written(tmp_path, "b.conll", parts)).texts == [("good", "film"), ("#", "bad")]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([0, 2], "tags 0 is O, 2 is I-PER; no row is B-PER"),
        (["I-PER", "O"], "tags O, I-PER; no row is B-PER"),
        ([1, 0, 2], "tags 0 is O, 1 is B-PER, 2 is I-PER"),
    ],
)
def test_it_is_said_which_tag_became_which(tmp_path, tags, said):
    model = BertForTokenClassification(configs()["bert"])
    model.config.id2label = {index: name for name, index in NAMES.items()}
    rows = json.dumps({"tokens": ["good"] * len(tags), "tags": tags})
    found = cut_table(read_table(written(tmp_path, "a.jsonl", rows)), model, tiny_tokenizer(), Cut(8), "train")
    assert str(found) == said


def test_a_word_may_hold_a_space_that_is_none_of_the_columns(tmp_path):
    table = read_table(written(tmp_path, "a.conll", "10\u00a0000  B-PER \n\u3000 O\n"))
    assert table.texts == [("10\u00a0000", "")]
    assert table.labels == [["B-PER", "O"]]


def test_conllu_has_columns_with_names(tmp_path):
    line = "{}\t{}\t_\t{}\t{}\t_\t_\t_\t_\t_"
    cells = [("1-2", "del", "_", "_"), (1, "de", "ADP", "x"), (2, "el", "DET", "y")]
    cells += [("2.1", "gone", "VERB", "z"), (3, "film", "NOUN", "w")]
    rows = ["# text = del film", *(line.format(*four) for four in cells)]
    table = read_table(written(tmp_path, "a.conllu", "\n".join(rows) + "\n\n"))
    assert table.texts == [("de", "el", "film")]
    assert table.labels == [["ADP", "DET", "NOUN"]]
    assert table.label_column == "upos"
    assert not of_entities(["ADP", "DET", "NOUN"])
    assert read_table(written(tmp_path, "b.conllu", "\n".join(rows)), label_column="xpos").labels == [["x", "y", "w"]]


@pytest.mark.parametrize("column", ["tags", "ner_tags"])
def test_lists_in_json_lines(tmp_path, column):
    rows = [{"tokens": ["good", "film"], column: ["B-PER", "O"]}, {"tokens": [], column: []}]
    table = read_table(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert table.tagged
    assert table.label_column == column
    found = encode_tagged(table, tiny_tokenizer(), 16, NAMES)
    assert (len(found.rows), found.empty) == (1, 1)
    assert "1 rows have no words" in str(found)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.conll", "good O\nfilm B-NP B-PER\n", "line 2 must have 2 columns"),
        ("a.conll", "good\n", "must have a word and a tag"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "O"]}\n{"tokens": ["a", "b"], "tags": ["O"]}', "in row 2"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": "O O"}', "got a str for 2 words in row 1"),
    ],
)
def test_what_is_no_tagged_text_is_one_line(tmp_path, name, text, said):
    with pytest.raises(niwaki.RequestError, match=said):
        read_table(written(tmp_path, name, text))


def test_tags_are_of_entities_all_or_none(tmp_path):
    table = read_table(written(tmp_path, "a.conll", "good B-PER\nfilm NOUN\n"))
    with pytest.raises(niwaki.RequestError, match=r"BIO or IOBES.*got 'NOUN'"):
        tag_names(table)
    with pytest.raises(niwaki.RequestError, match="at least two tags"):
        tag_names(read_table(written(tmp_path, "b.conll", "good O\nfilm O\n")))
    assert tag_names(read_table(written(tmp_path, "c.conll", "a I-PER\nb B-PER\nc B-LOC\nd O\n"))) == [
        "O", "B-LOC", "B-PER", "I-PER"]  # fmt: skip


def test_the_first_piece_carries_the_tag(tmp_path):
    """Checked by hand: `films` is `film ##s`; [CLS], [SEP] and later pieces have no label."""
    table = read_table(written(tmp_path, "a.conll", "good O\nfilms B-PER\nplots I-PER\n"))
    tokenizer = tiny_tokenizer()
    (row,) = encode_tagged(table, tokenizer, 16, NAMES).rows
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]", "good", "film", "##s", "plot", "##s", "[SEP]"]  # fmt: skip
    assert row["labels"] == [-100, 0, 1, -100, 2, -100, -100]


def test_a_long_word_and_a_long_row_lose_no_tag(tmp_path):
    """A word of 601 pieces, then others: rows are cut, and every word has its tag once, at its first piece."""
    words = ["a" + "s" * 0, "film" + "s" * 600, "good", "bad"] + ["plot"] * 40
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.model.max_input_chars_per_word = 1000
    tags = ["O", "B-PER", "I-PER", "O"] + ["B-PER"] * 40
    lines = "\n".join(f"{word} {tag}" for word, tag in zip(words, tags, strict=True))
    found = encode_tagged(read_table(written(tmp_path, "a.conll", lines)), tokenizer, 16, NAMES)
    assert found.cut == 1
    assert len(found.rows) == 4  # of the 43 of the long word there are the first and the last
    assert all(set(row["labels"]) != {-100} for row in found.rows)
    assert all(len(row["input_ids"]) == len(row["labels"]) <= 16 for row in found.rows)
    labels = [label for row in found.rows for label in row["labels"] if label != -100]
    assert labels == [NAMES[tag] for tag in tags]
    assert "cut into several" in str(found)


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_without_room_for_a_word_is_refused(tmp_path, length):
    table = read_table(written(tmp_path, "a.conll", "good O\nfilms B-PER\n"))
    with pytest.raises(niwaki.RequestError, match=f"max_length must be at least 3, .* adds 2 tokens .*, got {length}"):
        encode_tagged(table, tiny_tokenizer(), length, NAMES)


def test_words_without_a_piece_are_counted(tmp_path):
    table = read_table(written(tmp_path, "a.jsonl", json.dumps({"tokens": ["good", "\u200b"], "tags": ["O", "O"]})))
    found = encode_tagged(table, tiny_tokenizer(), 16, NAMES)
    assert found.lost == 1
    assert "1 words have no tokens" in str(found)


def test_a_tag_that_the_model_does_not_have(tmp_path):
    table = read_table(written(tmp_path, "a.conll", "good B-LOC\nfilm O\n"))
    with pytest.raises(niwaki.RequestError, match=r"O, B-PER, I-PER, got 'B-LOC'.*--label-names.*have B-LOC, O"):
        encode_tagged(table, tiny_tokenizer(), 16, NAMES)
    by_number = read_table(written(tmp_path, "b.jsonl", json.dumps({"tokens": ["good"], "tags": [2]})))
    assert encode_tagged(by_number, tiny_tokenizer(), 16, NAMES).rows[0]["labels"] == [-100, 2, -100]


def said_by_a_model(names, rows, said):
    """`quality` of a tagger that says the next of the tags `said` at every first piece, row by row as they come."""
    config = configs()["bert"]
    config.id2label, config.num_labels = dict(enumerate(names)), len(names)
    tokenizer, told = tiny_tokenizer(), iter(said)
    places = [[place for place, label in enumerate(row["labels"]) if label != -100] for row in rows]

    class Says(BertForTokenClassification):
        def forward(self, input_ids=None, **_):
            logits = torch.zeros(*input_ids.shape, len(names))
            for row in range(len(input_ids)):
                for place in places.pop(0):
                    logits[row, place, names.index(next(told))] = 1.0
            return type("Output", (), {"logits": logits})()

    return quality(Says(config), Batches(rows, tokenizer, 4, sort_by_length=False))


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        ("U-PER U-PER O U-PER", "U-PER U-PER O O"),
        ("B-PER L-PER U-PER O", "B-PER L-PER O O"),
        ("S-PER S-PER O S-PER", "S-PER S-PER O O"),
        ("B-PER E-PER S-PER O", "B-PER E-PER O O"),
    ],
)
def test_every_scheme_of_entities(tmp_path, truth, found):
    """By hand: none of what is found is wrong, and one entity is missed."""
    names = sorted({*truth.split(), *found.split(), "O"})
    lines = "\n".join(f"good {tag}" for tag in truth.split())
    rows = encode_tagged(
        read_table(written(tmp_path, "a.conll", lines)), tiny_tokenizer(), 16, {name: i for i, name in enumerate(names)}
    ).rows
    values = said_by_a_model(names, rows, found.split())
    count = sum(tag[0] in "US" or tag[0] == "B" for tag in truth.split())
    assert values["precision"] == 1.0
    assert values["recall"] == pytest.approx((count - 1) / count)


def test_a_row_that_was_cut_is_measured_as_one(tmp_path):
    """The entity of three words lies in two rows of four tokens; found whole it is one."""
    tags = ["O", "B-PER", "I-PER", "I-PER", "O"]
    table = read_table(written(tmp_path, "a.conll", "\n".join(f"good {tag}" for tag in tags)))
    rows = encode_tagged(table, tiny_tokenizer(), 4, NAMES).rows
    assert len(rows) == 3
    assert said_by_a_model(list(NAMES), rows, tags)["f1"] == 1.0
    missed = said_by_a_model(list(NAMES), rows, ["O", "B-PER", "I-PER", "O", "O"])
    assert missed == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "token_accuracy": 0.8}


def test_numbers_of_tags_are_in_the_order_of_numbers(tmp_path):
    rows = [{"tokens": ["good"] * 12, "ner_tags": list(range(12))}]
    assert tag_names(read_table(written(tmp_path, "a.jsonl", json.dumps(rows[0])))) == [str(i) for i in range(12)]


def test_texts_without_labels_are_looked_at_as_they_stand(tmp_path):
    model, tokenizer = BertForTokenClassification(configs()["bert"]), tiny_tokenizer()
    texts = read_table(written(tmp_path, "a.txt", "a good film\nthe plot is dull\n"))
    rows = cut_table(texts, model, tokenizer, Cut(16), "train").rows
    assert [len(row["input_ids"]) for row in rows] == [5, 6]
    assert not Batches(rows, tokenizer, 2).labelled
    lines = read_table(written(tmp_path, "b.txt", "-DOCSTART- -X- O\n\ngood NN B-PER\nfilm NN O\n"))
    with pytest.raises(niwaki.RequestError, match=r"must be words with tags \(a .conll or .conllu file"):
        cut_table(lines, model, tokenizer, Cut(16), "train")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"tokens": ["a"], "tags": ["O"]}, {"tokens": None, "tags": ["O"]}],
            "list of words in every row, got none in row 2",
        ),
        ([{"tokens": ["a", None], "tags": ["O", "O"]}, {"tokens": ["a"], "tags": ["O"]}], "got none in row 1"),
        ([{"tokens": ["a", "b"], "tags": ["O", None]}], "got 1 tags for 2 words in row 1"),
    ],
)
def test_words_and_tags_that_are_missing(tmp_path, rows, said):
    with pytest.raises(niwaki.RequestError, match=said):
        read_table(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))


def test_entities_are_measured_whole(tmp_path):
    """Checked by hand: of two entities one is found with its end, the other is cut short."""
    config = configs()["bert"]
    config.id2label, config.label2id, config.num_labels = {i: n for n, i in NAMES.items()}, NAMES, 3
    text = "good B-PER\nfilm I-PER\nis O\na B-PER\nbad I-PER\n"
    tokenizer = tiny_tokenizer()
    rows = encode_tagged(read_table(written(tmp_path, "a.conll", text)), tokenizer, 16, NAMES).rows
    wanted = [0, 1, 2, 0, 1, 0, 0]  # [CLS] good film is a bad [SEP]; the last I-PER is missed

    class Says(BertForTokenClassification):
        def forward(self, input_ids=None, **_):
            logits = torch.nn.functional.one_hot(torch.tensor([wanted] * len(input_ids)), 3).float()
            return type("Output", (), {"logits": logits})()

    found = quality(Says(config), Batches(rows, tokenizer, 4))
    assert found == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "token_accuracy": 0.8}
