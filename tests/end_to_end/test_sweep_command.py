"""A sweep makes what its points share once, goes on after it was killed, and picks; a budget that keeps the quality."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
import yaml

import niwaki
import niwaki.run.sweep.shared
from niwaki.checkpoint.working import working_folder
from niwaki.run.sweep.shared import Shared

COMMON = {"model": "base", "train_data": "train.tsv", "eval_data": "eval.tsv", "batch_size": 16}


def as_json(place, out):
    """`sweep.json` in two parts: what is the same for the same sweep, and what the clock said."""
    found = json.loads((place / out / "sweep.json").read_text())
    return found, found.pop("timed")


class Killed(BaseException):
    pass


def test_a_killed_sweep_goes_on_and_ends_as_one_that_was_not(place, typed, monkeypatch):
    sweep = {**COMMON, "seeds": [0, 1], "methods": [
        {"kind": "structured", "flops": [0.7, 0.4]},
        {"kind": "layer-adaptive", "name": "sparse", "sparsity": 0.5, "allocation": "uniform", "fast": True},
    ]}  # fmt: skip
    (place / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    planned, measured, plan = [], [], niwaki.run.sweep.shared.plan

    def counted(*args, **options):
        planned.append(args[1])
        return plan(*args, **options)

    def measure(*args):
        measured.append(args)
        return measure_state(*args)

    measure_state = niwaki.run.sweep.shared.measure_state
    monkeypatch.setattr(niwaki.run.sweep.shared, "plan", counted)
    monkeypatch.setattr(niwaki.run.sweep.shared, "measure_state", measure)
    status, said, err = typed(place, "sweep", "sweep.yaml", out="whole", pick="size_bytes <= 1.0 * dense")
    assert status == 0, err
    whole, timed = as_json(place, "whole")
    assert (len(planned), len(measured)) == (4, 1)
    assert len(whole["points"]) == 6
    assert set(timed["latency"]) == {point["name"] for point in whole["points"]}
    assert (
        whole["picked"]
        == min(whole["points"], key=lambda p: (p["size_bytes"], p["params"] - p["zeros"], p["name"]))["name"]
    )
    assert niwaki.load(place / "whole" / "picked")
    assert f"{whole['points'][0]['name']}  accuracy" in said

    do, done = Shared.do, []

    def killed(self, point, *rest):
        if len(done) == 3:
            self.place.point(point).mkdir(parents=True)  # as SIGKILL would leave it
            (self.place.point(point) / ".half").write_text("x")
            raise Killed
        done.append(point)
        do(self, point, *rest)

    monkeypatch.setattr(Shared, "do", killed)
    with pytest.raises(Killed):
        typed(place, "sweep", "sweep.yaml", out="halved")
    monkeypatch.setattr(Shared, "do", do)
    planned.clear(), measured.clear()
    pick = ("--pick", "size_bytes <= 1.0 * dense")
    status, said, err = typed(place, "sweep", "--out", "halved", *pick, "sweep.yaml")  # options before the file
    assert status == 0, err
    assert "sweep: 3 of 6 points are kept: the same command goes on from there, with --restart it begins anew" in err
    assert "3 of 6 points are done already" in err
    assert not planned
    assert len(measured) == 1  # what it says of every row is not kept
    halved = as_json(place, "halved")[0]
    assert halved == whole
    assert said.splitlines()[-1] == (
        f"next: niwaki export --model halved/picked --to onnx --out {halved['picked']}.onnx"
    )
    for point in whole["points"]:
        assert (place / "halved" / "points" / point["name"] / "report.html").is_file()


def test_points_carry_the_dense_flops_of_their_own_seed(place):
    whole = as_json(place, "whole")[0]
    for point in whole["points"]:
        result = json.loads((place / "whole" / "points" / point["name"] / "result.json").read_text())
        assert point["dense_flops"] == result["dense"]["flops"]


def test_a_point_is_what_the_command_alone_gives(place, typed):
    options = {**COMMON, "seed": 1}
    status, _, err = typed(place, "prune", "structured", **options, flops=0.4, out="a-point")
    assert status == 0, err
    point = place / "whole" / "points" / "structured-flops-0.4-seed-1"
    assert (point / "model.safetensors").read_bytes() == (place / "a-point" / "model.safetensors").read_bytes()


def test_what_is_picked_needs_no_point(place, typed):
    asked = {**COMMON, "model": "lora", "sparsity": 0.3, "weight_score": "magnitude", "repair": "none"}
    words = ("sweep", "layer-adaptive", "--keep-adapter", "--pick", "zeros >= 1")
    status, _, err = typed(place, *words, **asked, out="adapted")
    assert status == 0, err
    shutil.rmtree(place / "adapted" / "points")
    config = json.loads((place / "adapted" / "picked" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "adapted" / "picked")
    assert niwaki.load(place / "adapted" / "picked" / "adapter")


def test_a_sweep_begins_anew_where_it_is_asked_to(place, typed):
    asked = {**COMMON, "sparsity": 0.3, "weight_score": "magnitude", "repair": "none", "out": "anew"}
    for words, made in (((), True), ((), False), (("--restart",), True)):
        status, _, err = typed(place, "sweep", "layer-adaptive", *words, **asked)
        assert status == 0, err
        assert ("point: " in err) == made
        assert ("1 of 1 points are done already" in err) != made


def test_a_sweep_goes_on_with_the_same_tokenizer_and_the_same_labels_alone(place, typed, tmp_path):
    model, labels = tmp_path / "model", {"low": 0, "high": 1}
    shutil.copytree(place / "base", model)
    config, words = (json.loads((model / name).read_text()) for name in ("config.json", "tokenizer.json"))
    config |= {"label2id": labels, "id2label": {0: "low", 1: "high"}}
    data = dict.fromkeys(("train_data", "eval_data"), "learnable.tsv")
    asked = {"model": model, **data, "sparsity": 0.3, "weight_score": "magnitude", "repair": "none", "out": "alone"}

    def swept():
        (model / "config.json").write_text(json.dumps(config))
        (model / "tokenizer.json").write_text(json.dumps(words))
        return typed(place, "sweep", "layer-adaptive", **asked)

    status, said, err = swept()
    assert status == 0, err
    assert "--model alone/points/layer-adaptive-sparsity-0.3-seed-0 --to onnx" in said.splitlines()[-1]
    config |= {"label2id": {"high": 0, "low": 1}, "id2label": {0: "high", 1: "low"}}
    status, _, err = swept()
    assert (status, "of another: rows, model differ" in err) == (2, True)
    config |= {"label2id": labels, "id2label": {0: "low", 1: "high"}}
    vocabulary = words["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    status, _, err = swept()
    assert (status, "of another: rows, tokenizer differ" in err) == (2, True)


def test_a_budget_that_cannot_be_met_is_refused_before_any_point(place, typed):
    status, _, err = typed(place, "sweep", "layer-adaptive", "--sparsity", "0.2", "0.9", "--keep-layers", "0",
                           **COMMON, out="unmet")  # fmt: skip
    assert status == 2
    assert "sparsity must be 0 to 0." in err
    assert not (place / "unmet").exists()


def test_a_sweep_trains_under_moving_masks(place, typed):
    options = {**COMMON, "interval": 1, "epochs": 1, "sparsity": 0.6}
    for command, out in (("sweep", "trained"), ("prune", "a-training")):
        status, _, err = typed(place, command, "dynamic", **options, out=out)
        assert status == 0, err
    (point,) = (place / "trained" / "points").iterdir()
    assert (point / "model.safetensors").read_bytes() == (place / "a-training" / "model.safetensors").read_bytes()


def test_another_sweep_is_refused_and_overwritten_when_asked(place, typed):
    flags = {**COMMON, "out": "again"}
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", "0.6", **flags, pick="accuracy >= 2")
    assert status == 2
    assert "pick must hold for at least one point, got none; the nearest is structured-flops-" in err
    assert len(as_json(place, "again")[0]["points"]) == 2
    assert not (place / "again" / "picked").exists()
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", **flags)
    assert status == 2
    assert "request differ" in err
    with working_folder(place / "again"):
        status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", "0.6", **flags)
    assert status == 2
    assert "out must be written by one process at a time" in err
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", **flags, overwrite=True)
    assert status == 0, err
    assert len(list((place / "again" / "points").iterdir())) == 1
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", **{**flags, "out": "full"}, overwrite=True)
    assert status == 2
    assert (place / "full" / "mine").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": None}, "budget: at least one of flops, params, latency must be given for structured"),
        ({"pick": "__import__('os')"}, "pick must be conditions such as"),
        ({"pick": "accuracy >= 0.9 * sparse"}, "pick must be conditions such as"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
    ],
)
def test_what_no_sweep_can_be_is_refused(place, typed, change, message):
    status, _, err = typed(place, "sweep", "structured", **{**COMMON, "out": "none", "flops": 0.5, **change})
    assert status == 2
    assert message in err
    assert not (place / "none").exists()


def test_what_is_picked_by_is_known_before_any_work(place, typed, monkeypatch):
    asked = {**COMMON, "flops": 0.8, "out": "misnamed"}
    for pick in ("acuracy >= 0.9 * dense", "kl <= 0.5 * dense", "tasks/acc >= 0.1", "cosine >= 0.9"):
        status, _, err = typed(place, "sweep", "structured", **asked, pick=pick)
        assert status == 2
        assert "pick must name one of accuracy, " in err
        assert not (place / "misnamed").exists()
    later = (("accuracy", "later"), None)
    monkeypatch.setattr(niwaki.run.sweep.shared, "measures_of", lambda model: later)
    status, _, err = typed(place, "sweep", "structured", **asked, pick="later >= 0.9 * dense")
    assert status == 2
    assert "pick must name one of accuracy, f1, flops" in err
    assert not (place / "misnamed" / "points").exists()


def test_what_points_share_lies_in_the_folder_for_it_and_goes(place, typed, monkeypatch, tmp_path):
    do, seen = Shared.do, []

    def watched(self, point, temporary, *rest):
        seen.append((temporary, sorted(temporary.rglob("*.safetensors"))))
        do(self, point, temporary, *rest)

    monkeypatch.setattr(Shared, "do", watched)
    asked = {**COMMON, "out": "apart", "activations_dir": tmp_path}
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", "0.6", **asked)
    assert status == 0, err
    assert {folder.parent for folder, _ in seen} == {tmp_path}
    assert [bool(files) for _, files in seen] == [False, True]
    assert not list(tmp_path.iterdir())
    left = seen[0][0].with_name(f"{seen[0][0].name.rpartition('-')[0]}-{10**9}")
    left.mkdir()  # as SIGKILL would leave it
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", "0.6", **asked)
    assert status == 0, err
    assert not list(tmp_path.iterdir())


def test_jobs_are_held_together_against_the_memory(place, typed):
    asked = {**COMMON, "out": "much"}
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", "0.6", **asked, max_memory="1MiB")
    assert status == 2
    enough = float(err.split("must be at least ")[1].split("GiB")[0]) + 0.1
    options = {**asked, "max_memory": f"{enough}GiB", "jobs": 2}
    status, _, err = typed(place, "sweep", "structured", "--flops", "0.8", "0.6", **options)
    assert status == 2
    assert "GiB for 2 jobs (fewer need less), got" in err
    assert not (place / "much").exists()


def test_the_smallest_budget_that_keeps_the_quality(place, typed):
    options = {**COMMON, "out": "searched", "keep_quality": 0.5, "tries": 3}
    status, _, err = typed(place, "prune", "structured", **options)
    assert status == 0, err
    result = json.loads((place / "searched" / "result.json").read_text())
    (stage,) = result["stages"]
    search = stage["keep_quality"]
    tries = search["tries"]
    assert len(tries) == 3
    assert search["rows"] == 10  # a quarter of the training rows
    assert stage["budget"]["requested"] == min(each["flops"] for each in tries if each["kept"])
    assert all(each["kept"] == (each["accuracy"] >= 0.5 * search["dense"]) for each in tries)
    assert "try 3 of 3" in err
    again = niwaki.config.read_recipe(place / "searched" / "recipe.yaml")
    assert again.stages[0].keep_quality == 0.5
    status, _, err = typed(place, "prune", "layer-adaptive", **{**options, "out": "two"}, sparsity=0.5)
    assert status == 2
    assert "exactly one of sparsity, keep_quality must be given, got sparsity and keep_quality" in err


def test_a_plan_on_file_is_carried_out(place, typed):
    few = {name: COMMON[name] for name in ("model", "train_data", "batch_size")}
    status, said, err = typed(place, "plan", "layer-adaptive", **few, sparsity=0.4, out="plan")
    assert status == 0, err
    assert "What goes:" in said
    following = said.splitlines()[-1]
    assert following.endswith("--eval-data E --batch-size 16 --sparsity 0.4 --plan plan --out plan-done")
    status, _, err = typed(place, *shlex.split(following)[2:], eval_data=COMMON["eval_data"])
    assert status == 0, err
    for out, plan in (("by-plan", "plan"), ("without", None)):
        status, _, err = typed(place, "prune", "layer-adaptive", **COMMON, sparsity=0.4, plan=plan, out=out)
        assert status == 0, err
    weights = [(place / out / "model.safetensors").read_bytes() for out in ("by-plan", "without")]
    assert weights[0] == weights[1]
    status, _, err = typed(place, "prune", "structured", **COMMON, flops=0.4, plan="plan", out="wrong")
    assert status == 2
    assert "plan must be one of structured, got one of layer-adaptive" in err
