"""Questions on contexts: how files are read, which tokens are the answer, what a model says in words."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertForQuestionAnswering

import niwaki
from helpers_tasks import batches_of, model_of
from helpers_text import tiny_tokenizer
from niwaki.anatomy import ANSWERER
from niwaki.data import Batches, read_table
from niwaki.data.answers import encode_answers
from niwaki.data.batches import ANSWER
from niwaki.evaluate import quality
from niwaki.run.rows import Cut, cut_table
from tiny import configs

CONTEXT = "the film is good . the plot is very dull and bad ."


def squad(*asked, context=CONTEXT):
    return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(asked)}]}]}


def question(name="q1", text="very dull", start=None, asked="is the plot good"):
    start = CONTEXT.index(text) if start is None else start
    return {"id": name, "question": asked, "answers": [{"text": text, "answer_start": start}]}


def table(folder, content, name="data.json"):
    path = folder / name
    path.write_text(json.dumps(content) if not isinstance(content, str) else content, encoding="utf-8")
    return read_table(str(path))


NONE = {"id": "q2", "question": "is it", "answers": [], "is_impossible": True}


def test_files_and_rows_of_a_data_set(tmp_path):
    found = table(tmp_path, squad(question(), NONE))
    assert found.ids == ("q1", "q2")
    assert found.texts[0] == ("is the plot good", CONTEXT)
    assert found.labels == [[{"text": "very dull", "start": CONTEXT.index("very")}], []]
    row = {"id": "x", "question": "is it", "context": CONTEXT, "answers": {"text": ["film"], "answer_start": [4]}}
    other = table(tmp_path, json.dumps(row), "data.jsonl")
    assert other.labels == [[{"text": "film", "start": 4}]]


def test_the_tokens_of_the_answer(tmp_path):
    """Checked by hand: [CLS] is the plot good [SEP] the film is good . the plot is very dull ..."""
    tokenizer = tiny_tokenizer()
    (row,) = encode_answers(table(tmp_path, squad(question())), tokenizer, 32, None)
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens[row["start_positions"] : row["end_positions"] + 1] == ["very", "dull"]
    assert row["start_positions"] == 14
    (row,) = encode_answers(table(tmp_path, squad(NONE)), tokenizer, 32, None)
    assert (row["start_positions"], row["end_positions"]) == (0, 0)


def test_a_long_context_is_cut_into_rows_that_overlap(tmp_path):
    tokenizer, long = tiny_tokenizer(), " ".join([CONTEXT] * 4)
    asked = question(start=3 * (len(CONTEXT) + 1) + CONTEXT.index("very"))
    rows = encode_answers(table(tmp_path, squad(asked, context=long)), tokenizer, 24, None)
    assert len(rows) > 3
    assert all(len(row["input_ids"]) <= 24 for row in rows)
    holding = [row for row in rows if row["end_positions"]]
    assert 1 <= len(holding) < len(rows)
    for row in holding:
        tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert tokens[row["start_positions"] : row["end_positions"] + 1] == ["very", "dull"]
    # Every token of the context is in some row.
    seen = {span for row in rows for span in row[ANSWER].offsets if span}
    assert {long[a:b] for a, b in seen} == set(long.split())
    assert max(b for _, b in seen) == len(long)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (squad(question(start=1)), "1 that do not, first 'q1'"),
        (squad(question(), question("q3", start=2), question("q4", start=3)), "2 that do not, first 'q3'"),
        (squad({"id": "q1", "question": "is it"}), "must have answers, got none for 'q1'"),
    ],
)
def test_answers_that_are_not_there(tmp_path, content, said):
    with pytest.raises(niwaki.RequestError, match=said):
        table(tmp_path, content)


def test_a_question_that_leaves_no_room(tmp_path):
    asked = question(asked="is the plot good " * 8)
    with pytest.raises(niwaki.RequestError, match=r"leave room for a part of the context .* got 24 for question 'q1'"):
        encode_answers(table(tmp_path, squad(asked)), tiny_tokenizer(), 24, None)
    with pytest.raises(niwaki.RequestError, match="stride must be 1 to"):
        encode_answers(table(tmp_path, squad(question())), tiny_tokenizer(), 24, 40)


class Says(BertForQuestionAnswering):
    """Points at the places that it is told, one pair a row; or at the first place."""

    def say(self, *pairs):
        self.pairs = list(pairs)
        return self

    def forward(self, input_ids=None, **_):
        shape = input_ids.shape
        start, end = torch.zeros(shape), torch.zeros(shape)
        for row in range(len(input_ids)):
            first, last = self.pairs.pop(0)
            start[row, first], end[row, last] = 5.0, 5.0
        return type("Output", (), {"start_logits": start, "end_logits": end})()


def measured(rows, *pairs):
    return quality(Says(configs()["bert"]).say(*pairs), Batches(rows, tiny_tokenizer(), 2, sort_by_length=False))


def test_answers_are_compared_as_words(tmp_path):
    """Checked by hand: `very dull` said `very dull and` shares two of three words, so F1 is 0.8."""
    rows = encode_answers(table(tmp_path, squad(question())), tiny_tokenizer(), 32, None)
    place = rows[0]["start_positions"]
    assert measured(rows, (place, place + 1)) == {"f1": 1.0, "exact_match": 1.0}
    assert measured(rows, (place, place + 2)) == {"f1": pytest.approx(0.8), "exact_match": 0.0}
    # An end before its start is no answer: what is taken then shares no word.
    assert measured(rows, (place + 3, place - 3))["exact_match"] == 0.0
    rows = encode_answers(table(tmp_path, squad(question(text="good ."))), tiny_tokenizer(), 32, None)
    place = rows[0]["start_positions"]
    assert measured(rows, (place, place)) == {"f1": 1.0, "exact_match": 1.0}  # without the point


def test_that_there_is_no_answer_can_be_right(tmp_path):
    rows = encode_answers(table(tmp_path, squad(question(), NONE)), tiny_tokenizer(), 32, None)
    place = rows[0]["start_positions"]
    assert measured(rows, (place, place + 1), (0, 0)) == {"f1": 1.0, "exact_match": 1.0}
    assert measured(rows, (0, 0), (0, 0)) == {"f1": 0.5, "exact_match": 0.5}


def test_batches_without_texts_cannot_be_measured():
    model = Says(configs()["bert"])
    with pytest.raises(niwaki.RequestError, match="questions on contexts"):
        quality(model, [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])


def test_held_out_questions_have_texts_before_anything_is_observed(monkeypatch):
    model, data = model_of(ANSWERER, "bert", layers=2), batches_of(ANSWERER, 2)
    monkeypatch.setattr("niwaki.methods.prune.plan", None)
    with pytest.raises(niwaki.RequestError, match="held_out must be questions on contexts"):
        niwaki.prune_(model, niwaki.Structured(keep_quality=0.9), data, held_out=data)


def test_questions_that_share_an_id_are_measured_apart(tmp_path):
    """Many files in SQuAD's form give none, or one twice; each question counts."""
    bare = [{key: value for key, value in question(text=text).items() if key != "id"} for text in ("very dull", "good")]
    for asked in (bare, [question("q", text) for text in ("very dull", "good")]):
        rows = encode_answers(table(tmp_path, squad(*asked)), tiny_tokenizer(), 32, None)
        places = [row["start_positions"] for row in rows]
        assert measured(rows, (places[0], places[0] + 1), (places[1], places[1])) == {"f1": 1.0, "exact_match": 1.0}
        assert measured(rows, (places[0], places[0] + 1), (1, 1)) == {"f1": 0.5, "exact_match": 0.5}


@pytest.mark.parametrize("start", [-1, 0])
def test_an_answer_without_text_is_none(tmp_path, start):
    empty = {"id": "q2", "question": "is it", "answers": [{"text": "", "answer_start": start}]}
    found = table(tmp_path, squad(question(), empty))
    assert found.labels[1] == []
    rows = encode_answers(found, tiny_tokenizer(), 32, None)
    assert (rows[1]["start_positions"], rows[1]["end_positions"]) == (0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"data": [{"paragraphs": [{"qas": [question()]}]}]}, "must have a context and qas, .*'context'"),
        (squad({"id": "q1", "answers": []}), "each with a question"),
        (squad(question(asked=None)), "every question of .* must be text, got 'None' for 'q1'"),
        (squad(question(), context="  "), "every context of .* must be text"),
        (squad(question(text="bad .", start=-5)), "1 that do not, first 'q1'"),
    ],
)
def test_parts_that_are_missing(tmp_path, content, said):
    with pytest.raises(niwaki.RequestError, match=said):
        table(tmp_path, content)


def test_questions_without_answers_are_looked_at_alone(tmp_path):
    """Nothing but what a model reads, in the windows that it would be measured in."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "is the plot good", "context": " ".join([CONTEXT] * 4)}), encoding="utf-8")
    model, tokenizer = BertForQuestionAnswering(configs()["bert"]), tiny_tokenizer()
    rows = cut_table(read_table(str(path)), model, tokenizer, Cut(24), "train").rows
    assert len(rows) > 3
    assert not Batches(rows, tokenizer, 2).labelled
    path.write_text(json.dumps({"question": "is the plot good", "answer": "it is"}), encoding="utf-8")
    with pytest.raises(niwaki.RequestError, match=r"columns question and context without, got question, answer"):
        cut_table(read_table(str(path)), model, tokenizer, Cut(24), "train")


def cut_off(*starts):
    """A batch of rows of 12 tokens whose answers start at these places; 12 is none of them."""
    places = torch.tensor(starts)
    ids = torch.randint(5, 18, (len(starts), 12), generator=torch.Generator().manual_seed(len(starts)))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "start_positions": places,
        "end_positions": places,
    }


def test_rows_whose_answer_is_cut_off_have_no_loss():
    """The loss of all rows is that of parts, each as often as `losses` says of it."""
    model = model_of(ANSWERER, "bert", layers=1)
    batch = cut_off(3, 12, 0, 12, 12, 7)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 6))]
    assert [ANSWERER.losses(each) for each in (batch, *parts)] == [3, 1, 2]
    with torch.no_grad():
        whole, *losses = (float(model(**each).loss) for each in (batch, *parts))
    assert whole == pytest.approx(sum(loss * n for loss, n in zip(losses, (1, 2), strict=True)) / 3, rel=1e-5)


def test_a_batch_without_an_answer_is_not_trained_on():
    model = model_of(ANSWERER, "bert", layers=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = r"data: batch 1: start_positions must be a place in one row at least, .* got 12, the length, in every row"
    with pytest.raises(niwaki.RequestError, match=said):
        niwaki.finetune(model, niwaki.Finetune(), [cut_off(3, 12), cut_off(12, 12)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    asked = niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", allocation="uniform", repair="none")
    niwaki.prune_(model, asked, [cut_off(12, 12)])  # which takes no loss
