"""What a sweep is asked, the frontier and its knee, what is picked; who may work while another is timed."""

from __future__ import annotations

import multiprocessing
import threading
import time
from types import SimpleNamespace

import pytest
import yaml

from niwaki import RequestError
from niwaki.config.sweep import Condition, parse_pick, read_sweep
from niwaki.run.sweep.alone import Gate
from niwaki.run.sweep.frontier import frontier, knee
from niwaki.run.sweep.summary import _timed, check_pick, picked

FILE = {"model": "m", "train_data": "t", "eval_data": "e", "methods": [{"kind": "structured", "flops": [0.7, 0.5]}]}


def read(tmp_path, plain, **given):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plain))
    return read_sweep(tmp_path / "sweep.yaml", "out", False, given)


def test_points_are_methods_by_budgets_by_seeds(tmp_path):
    wanda = {"kind": "layer-adaptive", "name": "wanda", "weight_score": "wanda", "steps": 2, "sparsity": 0.6}
    methods = [*FILE["methods"], {"kind": "dynamic", "sparsity": 0.8}, wanda]
    sweep = read(tmp_path, {**FILE, "seeds": [0, 3], "methods": methods, "pick": "f1 >= 0.5"}, jobs=2)
    assert [point.name for point in sweep.points] == [
        *(f"structured-flops-{flops}-seed-{seed}" for seed in (0, 3) for flops in (0.7, 0.5)),
        *(f"dynamic-sparsity-0.8-seed-{seed}" for seed in (0, 3)),
        *(f"wanda-sparsity-0.6-seed-{seed}" for seed in (0, 3)),
    ]
    last = sweep.points[-1]
    assert (last.plan, last.recipe.seed, last.recipe.stages[0].seed) == (None, 3, 3)  # two steps have no plan
    assert last.recipe.out == f"out/points/{last.name}"
    assert sweep.points[0].plan == sweep.points[1].plan == "structured-seed-0"
    assert (sweep.jobs, sweep.pick) == (2, "f1 >= 0.5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": []}, "methods must be a list of mappings"),
        ({"methods": [{"kind": "vocabulary"}]}, "methods.kind must be one of"),
        ({"methods": [{"kind": "structured", "flops": ["0.5"]}]}, "flops must be numbers"),
        ({"methods": [{"kind": "structured", "flops": 0.5, "seed": 1}]}, "seeds must be asked of the whole sweep"),
        (
            {"methods": [{"kind": "structured", "flops": each} for each in ([0.5], [0.7])]},
            "methods of one kind must have a name each",
        ),
        ({"methods": [{"kind": "structured", "flops": [0.5, 0.5]}]}, "budgets and seeds must differ from each other"),
        ({"methods": [{"kind": "structured", "name": "../x", "flops": 0.5}]}, "methods.name must be letters"),
        ({"methods": [{"kind": "structured", "name": "x" * 101, "flops": 0.5}]}, "methods.name must be letters"),
        ({"methods": [{"kind": "structured", "latency": 0.5}], "jobs": 2}, "jobs must be 1 for budgets in latency"),
        ({"seeds": 1}, "seeds must be a list of whole numbers"),
        ({"stages": []}, "sweep must name methods, seeds and --out in place of stages"),
        ({"pick": "accuracy > 1"}, "pick must be conditions such as"),
        ({"speling": 1}, "recipe key must be one of"),
    ],
)
def test_what_is_no_sweep_is_refused_in_a_line(tmp_path, change, message):
    with pytest.raises(RequestError, match=message):
        read(tmp_path, {**FILE, **change})


def test_the_frontier_holds_what_nobody_beats():
    costs = {
        "dense": (1.0, -0.9),
        "good": (0.5, -0.89),
        "worse": (0.6, -0.88),
        "small": (0.2, -0.6),
        "twin": (0.2, -0.6),
    }
    assert frontier(costs) == ["small", "twin", "good", "dense"]
    assert knee(costs) == "good"
    assert knee({"one": (1.0, 2.0)}) is None
    assert knee({"a": (0.0, 1.0), "b": (0.5, 0.5), "c": (1.0, 0.0)}) is None  # a straight line has no knee


def point(name, accuracy, size, zeros=0):
    counted = {"params": 100, "flops": 10, "size_bytes": size, "zeros": zeros}
    return {"name": name, "quality": {"accuracy": accuracy}, "fidelity": {"kl": 1 - accuracy}, **counted,
            "dense_flops": 20}  # fmt: skip


def test_the_smallest_that_holds_is_picked():
    assert parse_pick("accuracy >= .99 * dense and kl<=2e-1") == (
        Condition("accuracy", True, 0.99, True),
        Condition("kl", False, 0.2, False),
    )
    points = [point("a", 0.9, 50), point("b", 0.8, 30), point("c", 0.8, 30, zeros=5), point("d", 0.5, 10)]
    found = {"dense": point("dense", 0.9, 100), "points": points}
    assert picked(parse_pick("accuracy >= 0.85 * dense"), found) == "c"
    assert picked(parse_pick("accuracy >= 0.85 * dense and kl <= 0.15"), found) == "a"
    with pytest.raises(RequestError, match=r"got none; the nearest is a with accuracy 0\.9"):
        picked(parse_pick("accuracy >= 0.95"), found)
    with pytest.raises(RequestError, match="pick must name one of accuracy, flops, params, size_bytes, zeros, got"):
        picked(parse_pick("kl <= 1 * dense"), found)
    with pytest.raises(RequestError, match=r"must bound perplexity from above, .* got >= 0\.99 \* dense"):
        check_pick(parse_pick("perplexity >= 0.99 * dense"))
    with pytest.raises(RequestError, match="must bound wikitext/word_perplexity from above"):
        check_pick(parse_pick("wikitext/word_perplexity >= 0.99 * dense"))
    check_pick(parse_pick("habits/accuracy >= 0.99 * dense and rock-and-roll/accuracy >= .5 and Facts/exact,strict>=1"))
    check_pick(parse_pick("perplexity <= 1.01 * dense and accuracy >= 0.9 * dense and bits_per_token >= 0"))


def test_a_share_of_the_dense_flops_is_of_those_that_a_point_was_counted_beside():
    """Seeds calibrate on rows of other lengths, at which FLOPs are counted."""
    points = [point("a", 0.9, 50) | {"flops": 12, "dense_flops": 19}, point("b", 0.9, 60) | {"flops": 12.1}]
    found = {"dense": point("dense", 0.9, 100) | {"flops": 19}, "points": points}
    assert picked(parse_pick("flops <= 0.61 * dense"), found) == "b"
    assert picked(parse_pick("flops <= 12"), found) == "a"


def test_points_compare_by_what_all_were_timed_by():
    """The rows of one seed may be so long that no longer one is timed."""
    short, long = ({"batch_1": {"speedup": 2.0}, "seq_len": 9}, {"batch_1": {"speedup": 3.0}, "seq_len": 300})
    short["batch_1_long"] = {"speedup": 2.5, "seq_len": 36}
    results = {
        name: SimpleNamespace(latency=latency, run={"seconds": 1.0})
        for name, latency in (("seed-0", short), ("seed-1", long))
    }
    records = {name: {"quality": {"accuracy": 0.9}, "size_bytes": 4} for name in ("dense", *results)}
    for each in (results, dict(reversed(results.items()))):
        found = _timed(each, records, "accuracy")
        assert found["frontier"] == {"batch_1": ["seed-1"]}
        assert set(found["latency"]["seed-0"]) == {"batch_1", "batch_1_long", "seq_len"}


def test_nobody_works_while_one_is_timed(monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    gate = Gate(multiprocessing.get_context("spawn"), 2, 3)
    busy: set[int] = set()
    beside: list[set[int]] = []

    def job(number):
        def work():
            busy.add(number)
            time.sleep(0.001)
            busy.discard(number)

        for _ in range(10):
            with gate.work():
                work()
                with gate.alone():
                    time.sleep(0.001)
                    beside.append(set(busy))
                work()

    threads = [threading.Thread(target=job, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert beside == [set()] * 30
    assert (gate.working.value, gate.waiting.value, gate.timing.value) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: n\n", "sweep must give every key once, got 'model' again in line 2"),
        ("train_data: &x t\neval_data: *x\n", r"sweep must write out what it says, without aliases .* line 3"),
        ("resume: no\ntrain_data: t\neval_data: e\n", "recipe must leave out resume, which .* or --restart says"),
        ("pick: accuracy >= 1e999\ntrain_data: t\neval_data: e\n", "pick must be conditions such as .* got 'accuracy"),
        (f"seeds: {'[' * 12}{']' * 12}\n", "at most 10 deep, got line 2"),
        ("label_names: [no, yes]\ntrain_data: t\neval_data: e\n", "label_names must hold text.*quote it, got False"),
    ],
)
def test_sweep_files_are_read_as_strictly_as_recipes(tmp_path, text, said):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"model: m\n{text}methods: [{{kind: structured, flops: [0.5]}}]\n")
    with pytest.raises(RequestError, match=said):
        read_sweep(path, "out", False, {})
