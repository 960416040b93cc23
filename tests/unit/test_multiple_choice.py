"""Log-likelihoods by definition, whatever the batch; where lm-evaluation-harness is installed, its own accuracies."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers_text import letter_tokenizer
from niwaki.data.questions import Question, read_questions
from niwaki.errors import RequestError, WorkError
from niwaki.evaluate import (
    Mean,
    accuracies,
    encode_pair,
    encode_questions,
    find_tasks,
    harness_scores,
    log_likelihoods,
    multiple_choice,
)
from tiny import tiny

WORDS = ("a", "the", "moth", "cat", "that", "sat", "on", "hat", "an", "apple")


def drawn(count: int = 24) -> list[Question]:
    """Prompts that are empty, end with spaces, are longer than the context, or ask what has no letter."""
    draw, questions = random.Random(0), []
    for i in range(count):
        prompt = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, 8)))
        prompt = {0: "", 1: prompt + " ", 2: prompt * 8, 3: "  "}.get(i % 6, prompt)
        choices = tuple(" ".join(draw.choice(WORDS) for _ in range(n)) for n in (1, 2, draw.randrange(1, 4)))
        if i % 4 == 0:
            choices = (choices[0] + "ééé", *choices[1:])
        questions.append(Question(prompt, choices, draw.randrange(3)))
    return questions


def test_spaces_before_and_tokens_across_the_border():
    tokenizer = letter_tokenizer()
    ids = tokenizer.get_vocab()
    assert encode_pair(tokenizer, "t", " a") == ([1, ids["▁"], ids["t"]], [ids["▁a"]])
    assert encode_pair(tokenizer, "t ", "a") == encode_pair(tokenizer, "t", " a")
    # Tokenised as one: what the prompt takes alone is cut off, though its last letter has merged.
    assert encode_pair(tokenizer, "t", "hat") == ([1, ids["▁"], ids["t"]], [ids["a"], ids["t"]])
    assert encode_pair(tokenizer, "<s>t", " a") == encode_pair(letter_tokenizer(bos=False), "<s>t", " a")


def test_an_empty_prompt_is_the_first_token():
    tokenizer = letter_tokenizer()
    ids = tokenizer.get_vocab()
    assert encode_pair(tokenizer, "", " a") == ([1], [ids["▁a"]])
    assert encode_pair(tokenizer, "", "<s>a") == ([1], [ids["▁a"]])
    tokenizer.bos_token = None
    assert encode_pair(tokenizer, "", " a")[0] == [2]
    tokenizer.eos_token = None
    with pytest.raises(RequestError, match=r"empty prompt needs .* bos_token or eos_token, got neither"):
        encode_pair(tokenizer, "", " a")


def test_a_choice_without_a_token():
    with pytest.raises(RequestError, match="a token at least, got none for 'h'"):
        encode_pair(letter_tokenizer(), "t", "h")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_log_likelihoods_by_definition(family):
    model, tokenizer = tiny(family).train(), letter_tokenizer()
    pairs = encode_questions(tokenizer, drawn())
    found = log_likelihoods(model, pairs, batch_size=5)
    assert model.training
    model.eval()
    assert max(len(before) + len(after) for before, after in pairs) > 41
    for (before, after), value in zip(pairs, found, strict=True):
        ids = torch.tensor([*before, *after])[-41:]
        with torch.no_grad():
            logits = model(input_ids=ids[None, :-1]).logits[0].double()
        chances = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        assert value == pytest.approx(float(chances[-len(after) :].sum()), abs=1e-4)


def test_batches_do_not_matter():
    model, questions = tiny("llama"), drawn()
    pairs = encode_questions(letter_tokenizer(), questions)
    alone = log_likelihoods(model, pairs, batch_size=1)
    assert log_likelihoods(model, pairs, batch_size=7) == pytest.approx(alone, abs=1e-4)
    found = [multiple_choice(model, questions, pairs, batch_size) for batch_size in (1, 7, 100)]
    assert found[0] == found[1] == found[2]


def test_both_accuracies_and_their_errors():
    questions = [Question("", ("a", "bb"), 0), Question("", ("a", "bb"), 0), Question("", ("éé", "ccc"), 1)]
    found = accuracies(questions, [-3.0, -4.0, -2.0, -5.0, -3.0, -4.0])
    assert found["acc"] == Mean(2 / 3, pytest.approx(np.std([1, 1, 0], ddof=1) / math.sqrt(3)))
    # By length -2 beats -3, -2 beats -2.5, and -4/3 beats -3/2: counted in letters, where bytes would say -3/4.
    assert found["acc_norm"] == Mean(2 / 3, pytest.approx(np.std([0, 1, 1], ddof=1) / math.sqrt(3)))


def test_one_question_has_no_standard_error():
    question = Question("t", ("a", "th"), 0)
    found = multiple_choice(tiny("llama"), [question], encode_questions(letter_tokenizer(), [question]), 2)
    assert found["acc"].stderr is None


def test_what_cannot_be_scored():
    model = tiny("llama")
    with pytest.raises(RequestError, match="at most 40 tokens, the model's context, got 41"):
        log_likelihoods(model, [([1], [5] * 41)], 1)
    assert log_likelihoods(model, [([1], [5] * 40)], 1)[0] < 0
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = torch.nan
    with pytest.raises(WorkError, match="not finite"):
        log_likelihoods(model, [([1], [5])], 1)


TASK = """task: rows
dataset_path: json
dataset_kwargs: {data_files: {validation: %s}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{query}}"
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("bos", [True, False])
def test_the_harness_says_the_same(tmp_path, monkeypatch, bos):
    """On prompts of every kind that the harness takes; one of spaces alone it refuses without a BOS."""
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    kept = [question for question in drawn(60) if bos or question.prompt != "  "]
    rows = [{"query": q.prompt, "choices": list(q.choices), "gold": q.gold} for q in kept]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "rows.yaml").write_text(TASK % path)
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    model, tokenizer = tiny("llama"), letter_tokenizer(bos)
    theirs, described = harness_scores(model, tokenizer, manager, "rows", batch_size=4)
    questions = read_questions(str(path))[0]
    ours = multiple_choice(model, questions, encode_questions(tokenizer, questions), batch_size=8)
    assert {f"rows/{name}": mean.value for name, mean in ours.items()} == {n: m.value for n, m in theirs.items()}
    for name, mean in ours.items():
        assert mean.stderr == pytest.approx(theirs[f"rows/{name}"].stderr)
    assert (described["rows"]["rows"], described["rows"]["shots"]) == (len(kept), 0)
    few, described = harness_scores(model, tokenizer, manager, "rows", batch_size=4, limit=7)
    first = read_questions(str(path), limit=7)[0]
    assert few["rows/acc"].value == multiple_choice(model, first, encode_questions(tokenizer, first), 8)["acc"].value
    assert described["rows"]["rows"] == 7


def shaped(task: str, count: int = 40) -> list[dict]:
    """Rows of ARC, PIQA or HellaSwag, as their data sets hold them."""
    draw, rows = random.Random(1), []

    def words(n: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(n))

    for i in range(count):
        texts = [words(draw.randrange(1, 4)) for _ in range(4)]
        if task == "arc_easy":
            label = list("ABCD" if i % 2 else "1234")
            rows.append(
                {"question": words(4), "choices": {"text": texts, "label": label}, "answerKey": draw.choice(label)}
            )
        elif task == "piqa":
            rows.append({"goal": words(4), "sol1": texts[0], "sol2": texts[1], "label": draw.randrange(2)})
        else:
            row = {
                "ctx_a": f"{words(3)} [header] the [title] {words(2)}  on.",
                "ctx_b": words(2),
                "activity_label": "hat",
            }
            texts[0] = f"[step] {texts[0]}"
            rows.append({**row, "ctx": "", "endings": texts, "label": str(draw.randrange(4))})
    return rows


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("task", "file"), [("arc_easy", "arc"), ("piqa", "piqa"), ("hellaswag", "hellaswag")])
def test_rows_of_its_data_sets_are_asked_as_the_harness_asks(tmp_path, monkeypatch, task, file):
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, shaped(task))), encoding="utf-8")
    include = f"{Path(tasks.__file__).parent / file / task}.yaml"
    data = {split: str(path) for split in ("train", "validation", "test")}
    config = {"task": "rows", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
    (tmp_path / "rows.yaml").write_text(
        "\n".join(f"{k}: {json.dumps(v)}" for k, v in {"include": include, **config}.items())
    )
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    model, tokenizer = tiny("llama"), letter_tokenizer()
    theirs, _ = harness_scores(model, tokenizer, manager, "rows", batch_size=4)
    questions = read_questions(str(path))[0]
    ours = multiple_choice(model, questions, encode_questions(tokenizer, questions), batch_size=8)
    assert {f"rows/{name}": mean.value for name, mean in ours.items()} == {n: m.value for n, m in theirs.items()}


@pytest.mark.filterwarnings("default")
def test_the_harness_knows_its_tasks():
    pytest.importorskip("lm_eval")
    assert "arc_easy" in find_tasks(["arc_easy", "piqa", "ai2_arc"]).all_tasks
    with pytest.raises(RequestError, match=r"got 'arc_eazy'; did you mean 'arc_easy'"):
        find_tasks(["arc_eazy"])
