"""What is held out shares no text with what is left, whatever the rows that texts were cut into."""

from __future__ import annotations

import json

import pytest
from transformers import BertForQuestionAnswering

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.config import Recipe, Training
from niwaki.data import Batches, apart, read_table
from niwaki.data.answers import encode_answers
from niwaki.data.batches import ANSWER, SOURCE
from niwaki.data.running_text import pack
from niwaki.data.tagged import encode_tagged
from niwaki.run.inputs import Inputs
from niwaki.run.rows import Cut
from niwaki.run.work import cut_rows
from niwaki.train.data import check_training, hold_out
from tiny import configs, tiny

WORDS = ("good", "bad", "film", "plot", "the", "very", "dull", "bright")
SENTENCE = "the plot is very dull . " * 4


class Places:
    """A tokenizer whose tokens are the places of the letters of a text, so that each stands once in the data."""

    bos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": list(range(1, len(text) + 1))}


def numbered(texts, each):
    """Rows of `texts` texts, `each` of each, whose only token is the number of their text."""
    return [{"input_ids": [t], "attention_mask": [1], SOURCE: (t, t)} for _ in range(each) for t in range(texts)]


def answered(folder, contexts, questions=2):
    """Questions on contexts that are cut into several rows each."""
    asked = [{"id": str(n), "question": "is it", "answers": []} for n in range(questions)]
    texts = [f"{WORDS[n]} {WORDS[n]} {SENTENCE}" for n in range(contexts)]
    data = [{"title": "t", "paragraphs": [{"context": text, "qas": asked} for text in texts]}]
    (folder / "data.json").write_text(json.dumps({"data": data}))
    return read_table(str(folder / "data.json"))


def tagged(folder, sentences):
    lines = [json.dumps({"tokens": ["good"] * (3 + 5 * (n % 3)), "tags": ["O"] * (3 + 5 * (n % 3))}) for n in sentences]
    (folder / "data.jsonl").write_text("\n".join(lines))
    return read_table(str(folder / "data.jsonl"))


@pytest.mark.parametrize("stride", [1, 4, 10, 15])
@pytest.mark.parametrize("bos", [False, True])
def test_no_token_of_running_text_is_on_both_sides(stride, bos):
    rows, _ = pack("x" * 1000, Places(), 16, stride, bos=bos)
    for seed in range(3):
        left, held = apart(rows, len(rows) // 4, seed)
        assert 0 < len(held) <= len(rows) // 4
        assert len(left) > len(rows) // 2
        sides = [{token for row in side for token in row["input_ids"]} - {0} for side in (left, held)]
        assert not sides[0] & sides[1]
        assert [row for row in rows if row in left] == left
        assert [row for row in rows if row in held] == held


def test_windows_that_do_not_overlap_are_texts_of_their_own():
    rows, _ = pack("x" * 160, Places(), 16)
    left, held = apart(rows, 3, 0)
    assert (len(left), len(held)) == (7, 3)


def test_rows_of_one_text_go_together(tmp_path):
    """A context with all its questions and windows; all pieces of a long sentence."""
    answers = encode_answers(answered(tmp_path, 8), tiny_tokenizer(), 16, None)
    contexts = [row[ANSWER].context for row in answers]
    assert max(map(contexts.count, contexts)) > 2  # several windows, of two questions
    tags = encode_tagged(tagged(tmp_path, range(20)), tiny_tokenizer(), 8, {"O": 0}).rows
    assert len(tags) > 20
    for rows, text in ((answers, lambda row: row[ANSWER].context), (tags, lambda row: row[ANSWER])):
        drawn = []
        for seed in (0, 1, 2, 0):
            left, held = apart(rows, len(rows) // 4, seed)
            assert 0 < len(held) <= len(rows) // 4
            assert len(left) + len(held) == len(rows)
            assert not {text(row) for row in left} & {text(row) for row in held}
            drawn.append([text(row) for row in held])
        assert drawn[0] == drawn[3]
        assert drawn[0] != drawn[1] or drawn[0] != drawn[2]


def test_a_text_of_more_rows_than_asked_stays():
    left, held = apart(numbered(5, 4), 7, 0)
    assert (len(left), len(held)) == (16, 4)
    assert apart(numbered(5, 4), 3, 0) == (numbered(5, 4), [])


@pytest.mark.parametrize("each", [1, 3, 4])
def test_a_training_holds_out_whole_texts(each):
    data = Batches(numbered(240 // each, each), tiny_tokenizer(), 4)
    training, held = hold_out(data, 5)
    kept = [text for batch in held for text in batch["input_ids"].flatten().tolist()]
    left = [row["input_ids"][0] for row in training.rows]
    assert 0 < len(kept) <= 28  # an eighth of the 60 batches of 4
    assert not set(kept) & set(left)
    assert len(kept) + len(left) == 240
    assert all(set(batch) == {"input_ids", "attention_mask"} for batch in [*held, next(iter(training))])


def test_early_stopping_with_nothing_to_hold_out_is_refused():
    one = Batches(numbered(2, 40), tiny_tokenizer(), 4)
    with pytest.raises(niwaki.RequestError, match=r"early_stopping must be 0 for texts of too many rows each.*, got 2"):
        check_training(tiny(), Training(early_stopping=2), one)
    with pytest.raises(niwaki.RequestError, match=r"early_stopping must be 0 for fewer than 8 batches .* got 2 for 7"):
        check_training(tiny(), Training(early_stopping=2), list(one)[:7])
    check_training(tiny(), Training(early_stopping=2), Batches(numbered(20, 4), tiny_tokenizer(), 4))
    check_training(tiny(), Training(), one)


def test_the_quality_that_is_kept_is_measured_on_texts_of_its_own(tmp_path):
    recipe = Recipe(model="m", out="o", train_data="t", eval_data="e", stages=(niwaki.Structured(keep_quality=0.1),))
    model, tokenizer = BertForQuestionAnswering(configs()["bert"]), tiny_tokenizer()
    inputs = Inputs(model, tokenizer, 4, Cut(16), quiet=True)
    table = answered(tmp_path, 8)
    work = cut_rows(recipe, inputs, table, table)
    assert work.held_out is not None
    sides = [{row[ANSWER].context for row in batches.rows} for batches in (work.training, work.held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 8
    looked = {tuple(row) for batch in work.calibration for row in batch["input_ids"].tolist()}
    assert len(looked) == len({tuple(row["input_ids"]) for row in work.training.rows})
    again = cut_rows(recipe, inputs, table, table).held_out
    assert again is not None
    assert again.rows == work.held_out.rows
    few = answered(tmp_path, 3)
    with pytest.raises(niwaki.RequestError, match="train_data must have rows of at least 4 texts for keep_quality"):
        cut_rows(recipe, inputs, few, few)
