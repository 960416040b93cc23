"""Rows of every shape become questions with the harness's prompts; a row that is none is named."""

from __future__ import annotations

import json

import pytest

from niwaki.data.questions import Question, read_questions
from niwaki.errors import RequestError


def questions(tmp_path, *rows, limit=None):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return read_questions(str(path), limit)[0]


@pytest.mark.parametrize("prompt", ["query", "question", "context"])
@pytest.mark.parametrize(("answer", "gold"), [(1, 1), ("1", 1), ("B", 1), ("a", 0)])
def test_plain_rows(tmp_path, prompt, answer, gold):
    for key in ("gold", "answer", "label"):
        row = {prompt: "one ", "choices": ["two", "three"], key: answer}
        assert questions(tmp_path, row) == [Question("one ", ("two", "three"), gold)]


@pytest.mark.parametrize(("labels", "key"), [("ABC", "C"), ("123", "3")])
def test_rows_of_arc(tmp_path, labels, key):
    row = {"question": "why", "choices": {"text": ["x", "y", "z"], "label": list(labels)}, "answerKey": key}
    assert questions(tmp_path, row) == [Question("Question: why\nAnswer:", ("x", "y", "z"), 2)]


def test_rows_of_piqa(tmp_path):
    row = {"goal": "to open", "sol1": "pull", "sol2": "push", "label": 1}
    assert questions(tmp_path, row) == [Question("Question: to open\nAnswer:", ("pull", "push"), 1)]


def test_rows_of_hellaswag(tmp_path):
    row = {
        "activity_label": "Roof",
        "ctx_a": "A man sits. [header] Tools [title] Take  one.",
        "ctx_b": "he",
        "ctx": "not read",
        "endings": ["[step] falls.", "works [title] on"],
        "label": "1",
    }
    prompt = "Roof: A man sits. Tools. Take one. He"
    assert questions(tmp_path, row) == [Question(prompt, (" falls.", "works. on"), 1)]
    short = {"ctx": "A man sits. He", "endings": ["falls.", "works."], "label": 0}
    assert questions(tmp_path, short) == [Question("A man sits. He", ("falls.", "works."), 0)]


def test_a_limit_takes_the_first_rows(tmp_path):
    rows = [{"query": str(i), "choices": ["a", "b"], "gold": 0} for i in range(5)]
    assert [question.prompt for question in questions(tmp_path, *rows, limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, ["row 2", "0 to 1, A to B or one of the choices", "2"]),
        ({"query": "q", "choices": ["a", "b"], "gold": -1}, ["row 2", "-1"]),
        ({"query": "q", "choices": ["a", "b"], "gold": "C"}, ["row 2", "'C'"]),
        ({"query": "q", "choices": ["a", "b"], "gold": True}, ["row 2", "True"]),
        ({"query": "q", "choices": ["1", "0"], "gold": "1"}, ["row 2", "to different ends", "'1'"]),
        ({"query": "q", "choices": ["a", "b"]}, ["row 2", "answer", "None"]),
        ({"query": "q", "choices": ["a"], "gold": 0}, ["row 2", "two choices"]),
        ({"query": "q", "choices": ["a", ""], "gold": 0}, ["row 2", "not empty"]),
        ({"query": "q", "gold": 0}, ["row 2", "two choices", "None"]),
        ({"query": 3, "choices": ["a", "b"], "gold": 0}, ["row 2", "query, question, context", "query, choices"]),
        ({"text": "q"}, ["row 2", "sol1", "endings", "text"]),
        ({"ctx": "q", "endings": None, "label": 0}, ["row 2", "two choices", "None"]),
        ({"question": "q", "choices": {"text": ["a", "b"]}, "answerKey": ""}, ["row 2", "''"]),
        (["q"], ["row 2", "an object", "list"]),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, words):
    with pytest.raises(RequestError) as error:
        questions(tmp_path, {"query": "q", "choices": ["a", "b"], "gold": 0}, row)
    assert all(word in str(error.value) for word in words), error.value


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "a", "choices": ["b", "\\ud83d"], "gold": 0}')
    with pytest.raises(RequestError, match=r"row 1 of .*rows.jsonl' must hold text in UTF-8, got '\\ud83d'"):
        read_questions(str(path))


def test_files_that_hold_no_questions(tmp_path):
    with pytest.raises(RequestError, match=r"at least one row, got .*rows\.jsonl"):
        questions(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{\n")
    with pytest.raises(RequestError, match=r"can be read, got .*rows\.jsonl"):
        read_questions(str(tmp_path / "rows.jsonl"))
    with pytest.raises(RequestError, match=r"existing \.jsonl files, got 'none\.jsonl'"):
        read_questions("none.jsonl")
