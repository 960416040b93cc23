"""`--tasks` as a user types it: a file of questions, and tasks of a stand-in for lm-evaluation-harness."""

from __future__ import annotations

import functools
import json
import random
import sys

import pytest

import niwaki
from helpers_text import letter_tokenizer, tiny_tokenizer
from niwaki.data.questions import read_questions
from niwaki.evaluate import encode_questions, multiple_choice
from tiny import tiny

WORDS = ("a", "the", "moth", "cat", "that", "sat", "on", "hat")
HARNESS = {
    "__init__": '__version__ = "0.4.99"',
    "tasks": """
        class TaskManager:
            all_tasks = ["arc_challenge", "arc_easy", "piqa", "uncached"]
    """,
    "models/__init__": "",
    "models/huggingface": """
        class HFLM:
            def __init__(self, pretrained, tokenizer, batch_size, max_length):
                assert not pretrained.training and not any("lora" in n for n, _ in pretrained.named_parameters())
                self.said = [type(pretrained).__name__, len(tokenizer), batch_size, max_length]
                self.parameters = sum(p.numel() for p in pretrained.parameters())
    """,
    "evaluator": """
        import sys
        def simple_evaluate(model, tasks, task_manager, limit, **options):
            (task,) = tasks
            print("loud"), print("loud", file=sys.stderr)
            if task == "uncached":
                raise ConnectionError("no such host\\n  and no cache")
            values = {"alias": task, "acc,none": model.parameters / 1e6, "acc_stderr,none": 0.01,
                      "acc_norm,none": 0.25, "acc_norm_stderr,none": "N/A", "match,strict": 0.5}
            return {"results": {task: values}, "configs": {task: {"said": model.said}}, "versions": {task: 1.0},
                    "n-shot": {task: 0}, "n-samples": {task: {"original": 500, "effective": limit or 500}}}
    """,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    niwaki.save(tiny("llama"), place / "llama", letter_tokenizer())
    niwaki.save(tiny("llama", seed=1), place / "other", letter_tokenizer())
    niwaki.save(tiny("bert"), place / "bert", tiny_tokenizer())
    draw = random.Random(0)
    rows = [
        {"query": draw.choice(WORDS), "choices": draw.sample(WORDS, 3), "gold": draw.randrange(3)} for _ in range(20)
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "broken.jsonl").write_text(json.dumps({"query": "a", "choices": ["b", "c"]}))
    for name, length in (("train", 400), ("eval", 200)):
        (place / f"{name}.txt").write_text(" ".join(draw.choice(WORDS) for _ in range(length)))
    (place / "again").mkdir()
    (place / "again" / "rows.jsonl").write_text((place / "rows.jsonl").read_text())
    return place


@pytest.fixture
def niwaki_command(place, typed):
    """Run a command where these files are: exit status, standard output, error lines."""
    return functools.partial(typed, place)


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """A package `lm_eval` of the same shape, in place of the real one."""
    for name, text in HARNESS.items():
        path = tmp_path / "lm_eval" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines))
    for name in _loaded():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in _loaded():  # monkeypatch would put them back
        del sys.modules[name]


def _loaded():
    return [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]


@pytest.fixture
def no_harness(monkeypatch):
    real = niwaki.evaluate.harness.importlib.util.find_spec
    monkeypatch.setattr(
        niwaki.evaluate.harness.importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name)
    )


def result_of(place, out):
    return json.loads((place / out / "result.json").read_text())


def test_a_file_of_questions(place, niwaki_command, no_harness):
    status, out, err = niwaki_command(
        "eval", "--model", "llama", "--against", "other", "--tasks", "rows.jsonl", "--out", "asked"
    )
    assert status == 0, err
    assert "tasks: rows.jsonl: 20 questions" in err
    assert "at 40 tokens a row, as there is no eval_data" in err
    result = result_of(place, "asked")
    for name, side in (("llama", "pruned"), ("other", "dense")):
        questions, tokenizer = read_questions(str(place / "rows.jsonl"))[0], letter_tokenizer()
        pairs = encode_questions(tokenizer, questions)
        means = multiple_choice(niwaki.load(place / name), questions, pairs, 4)
        assert result[side]["quality"] == {f"rows/{metric}": mean.value for metric, mean in means.items()}
        assert result[side]["stderr"] == {f"rows/{metric}": mean.stderr for metric, mean in means.items()}
    before, after = (result[side]["quality"]["rows/acc"] for side in ("dense", "pruned"))
    errors = [result[side]["stderr"]["rows/acc"] for side in ("dense", "pruned")]
    assert f"rows/acc: {before:.4f} ± {errors[0]:.4f} before, {after:.4f} ± {errors[1]:.4f} after" in out
    assert list(result["data"]) == ["tasks"]
    assert result["data"]["tasks"]["rows"]["path"] == "rows.jsonl"
    assert result["data"]["tasks"]["rows"]["rows"] == 20
    assert result["latency"]["seq_len"] == 40
    page = (place / "asked" / "report.html").read_text()
    assert f"{after:.4f} ± {errors[1]:.4f}" in page
    assert "rows.jsonl" in page


def test_questions_beside_text(place, niwaki_command):
    status, out, err = niwaki_command(
        *("eval", "--model", "llama", "--eval-data", "eval.txt", "--max-length", "16", "--tasks", "rows.jsonl"),
        *("--limit", "5", "--latency-length", "8", "--out", "both"),
    )
    assert status == 0, err
    result = result_of(place, "both")
    assert {"perplexity", "rows/acc", "rows/acc_norm"} < set(result["pruned"]["quality"])
    assert set(result["data"]) == {"eval", "tasks"}
    assert result["data"]["tasks"]["rows"]["rows"] == 5
    assert result["latency"]["seq_len"] == 8
    assert result["dense"]["quality"] == result["pruned"]["quality"]
    assert "before" not in out


def test_tasks_of_the_harness(place, niwaki_command, harness):
    status, out, err = niwaki_command(
        *("eval", "--model", "llama", "--tasks", "arc_easy, piqa,rows.jsonl", "--limit", "7", "--out", "harness"),
        *("--batch-size", "4", "--quiet"),
    )
    assert (status, out, err) == (0, "", "")
    result = result_of(place, "harness")
    found = result["pruned"]["quality"]
    assert list(found) == [
        *("rows/acc", "rows/acc_norm"),
        *(f"{task}/{metric}" for task in ("arc_easy", "piqa") for metric in ("acc", "acc_norm", "match,strict")),
    ]
    assert found["arc_easy/acc_norm"] == 0.25
    assert result["pruned"]["stderr"]["piqa/acc"] == 0.01
    assert "piqa/acc_norm" not in result["pruned"]["stderr"]
    described = {"path": "arc_easy", "harness": "lm-eval 0.4.99", "version": 1.0, "rows": 7, "shots": 0}
    assert result["data"]["tasks"]["arc_easy"] == described


def test_tasks_before_and_after_pruning(place, niwaki_command, harness):
    status, out, err = niwaki_command(
        *("prune", "structured", "--model", "llama", "--train-data", "train.txt", "--eval-data", "eval.txt"),
        *("--max-length", "16", "--flops", "0.5", "--tasks", "rows.jsonl,arc_easy", "--out", "half"),
    )
    assert status == 0, err
    result = result_of(place, "half")
    kept = [result[side]["quality"]["arc_easy/acc"] for side in ("dense", "pruned")]
    assert kept[0] > kept[1] > 0
    assert "rows/acc_norm" in result["dense"]["quality"]
    assert "arc_easy/acc" in out
    assert "| arc_easy/acc |" in (place / "half" / "README.md").read_text()
    assert "tasks: rows.jsonl,arc_easy" in (place / "half" / "recipe.yaml").read_text()
    status, _, err = niwaki_command("run", "half/recipe.yaml", "--overwrite", "--quiet")
    assert (status, err) == (0, "")
    assert result_of(place, "half")["pruned"]["quality"] == result["pruned"]["quality"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--tasks", "arc_eazy"], 2, ["tasks", "lm-eval ls tasks", "'arc_eazy'", "did you mean 'arc_easy'?"]),
        (["--tasks", "uncached"], 3, ["'uncached' failed", "ConnectionError: no such host and no cache"]),
        (["--tasks", "broken.jsonl"], 2, ["tasks: row 1 of 'broken.jsonl'", "answer"]),
        (["--tasks", "none.jsonl"], 2, ["tasks", "existing", "none.jsonl"]),
        (["--tasks", "rows.jsonl,again/rows.jsonl"], 2, ["tasks", "a name each", "'rows'"]),
        (["--tasks", "piqa,piqa"], 2, ["tasks", "once", "piqa,piqa"]),
        (["--tasks", "piqa,"], 2, ["tasks", "commas", "'piqa,'"]),
        (["--tasks", "piqa", "--limit", "0"], 2, ["limit", "at least 1", "0"]),
        (["--eval-data", "eval.txt", "--limit", "5"], 2, ["limit", "tasks", "5"]),
        (["--tasks", "piqa", "--metric", "perplexity"], 2, ["metric", "eval_data", "perplexity"]),
        (["--tasks", "rows.jsonl", "--latency-length", "41"], 2, ["latency_length", "at most 40", "41"]),
        (["--tasks", "rows.jsonl", "--model", "bert"], 2, ["tasks", "language model", "BertForSequenceClassification"]),
        ([], 2, ["eval_data or tasks", "neither"]),
    ],
)
def test_what_is_refused_is_one_line_and_writes_nothing(place, niwaki_command, harness, words, status, said):
    model = [] if "--model" in words else ["--model", "llama"]
    found, _, err = niwaki_command("eval", *model, *words, "--out", "refused", "--quiet")
    assert found == status, err
    lines = err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in said), lines[0]
    assert not (place / "refused").exists()


def test_a_harness_that_is_not_installed(place, niwaki_command, no_harness):
    status, _, err = niwaki_command("eval", "--model", "llama", "--tasks", "arc_easy", "--out", "refused")
    assert status == 2
    assert "tasks needs lm-evaluation-harness for 'arc_easy'" in err
    assert "pip install niwaki[tasks]" in err
    assert not (place / "refused").exists()
