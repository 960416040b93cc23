"""A recipe of several stages says what each of them did, and dense is what the first removal found."""

from __future__ import annotations

import json

import pytest

import niwaki
import niwaki.run.stages

TUNE = {"kind": "finetune", "epochs": 8, "lora_rank": 4, "learning_rate": 0.003}


@pytest.fixture
def run(place, typed, monkeypatch):
    """Do a recipe: its result, what was said, and how often a model was measured."""
    measured, measure = [], niwaki.run.stages.measure

    def counted(model, *rest, **options):
        measured.append(model)
        return measure(model, *rest, **options)

    monkeypatch.setattr(niwaki.run.stages, "measure", counted)

    def run(out, model, *stages, train="learnable.tsv", evaluation="learnable.tsv"):
        recipe = {"model": model, "train_data": train, "eval_data": evaluation, "out": out, "batch_size": 8}
        (place / f"{out}.json").write_text(json.dumps({**recipe, "stages": stages}))
        status, said, err = typed(place, "run", f"{out}.json")
        assert status == 0, err
        return json.loads((place / out / "result.json").read_text()), said, len(measured)

    return run


def without_latency(record):
    return {name: value for name, value in record.items() if name != "latency"}


def test_pruning_is_held_against_what_it_found_not_against_an_untrained_head(run, place):
    result, said, measured = run("tuned-half", "body", TUNE, {"kind": "structured", "flops": 0.6})
    tuned, half = result["stages"]
    assert result["dense"]["quality"]["accuracy"] > 0.9
    assert tuned["before"]["quality"]["accuracy"] < 0.9
    assert tuned["before"]["new_head"]
    assert tuned["after"] == half["before"] == without_latency(result["dense"])
    assert half["after"] == without_latency(result["pruned"])
    assert half["after"]["flops"] <= 0.6 * half["before"]["flops"]
    assert "new_head" not in half["before"] | half["after"]
    assert measured == 3
    assert "as it came in: accuracy" in said
    assert f"accuracy: {result['dense']['quality']['accuracy']:.4f} before" in said
    for page in ("README.md", "report.html"):
        assert "after finetune" in (place / "tuned-half" / page).read_text()


def test_fine_tuning_alone_is_held_against_what_came_in(run, place):
    result, said, measured = run("only-tuned", "body", {**TUNE, "epochs": 1}, {**TUNE, "epochs": 1})
    assert without_latency(result["dense"]) == result["stages"][0]["before"]
    assert result["dense"]["new_head"]
    assert measured == 3
    assert "(new head, untrained) before" in said
    assert "(new head, untrained)" in (place / "only-tuned" / "README.md").read_text()


@pytest.mark.parametrize("model", ["base", "lora"])
def test_each_stage_is_measured_as_others_load_it(run, place, model):
    sparse = {"kind": "layer-adaptive", "sparsity": 0.4, "allocation": "uniform"}
    half = {"kind": "structured", "params": 0.6}
    result, _, measured = run(f"sparse-half-{model}", model, sparse, half, train="train.tsv", evaluation="eval.tsv")
    masked, cut = result["stages"]
    linears = {layer["name"]: layer for layer in result["layers"] if layer["kind"] == "linear"}
    weights = sum(layer["total"] for layer in linears.values())
    assert measured == 3
    assert masked["before"] == without_latency(result["dense"])
    assert masked["after"]["zeros"] == round(0.4 * weights)
    assert masked["after"]["params"] == masked["before"]["params"]
    assert cut["after"] == without_latency(result["pruned"])
    assert cut["after"]["params"] < cut["before"]["params"]
    assert {layer["kind"] for layer in result["layers"]} == {"linear", "attention", "ffn"}
    kept = sum(
        int((module.weight != 0).sum()) for module in masked_linears(niwaki.load(place / f"sparse-half-{model}"))
    )
    assert sum(layer["kept"] for layer in linears.values()) == kept


def masked_linears(model):
    return [module for module in model.modules() if hasattr(module, "mask")]


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ({"kind": "layer-adaptive", "sparsity": 0.9, "keep_layers": [0]}, "sparsity must be 0 to 0."),
        ({"kind": "layer-adaptive", "sparsity": 0.5, "spared": ["layer.9.ffn"]}, "spared"),
        ({"kind": "layer-adaptive", "pattern": "7x1", "sparsity": 0.5}, "7x1"),
        ({"kind": "structured", "latency": 0.6}, "latency_length must be at most 40, the positions of"),
        ({"kind": "structured", "latency": 0.6, "latency_length": 8, "keep_layers": [9]}, "keep_layers must be"),
        ({"kind": "structured", "latency": 0.6, "latency_length": 8, "min_heads": 9}, "min_heads must be at most 4"),
        ({"kind": "structured", "flops": 0.6, "plan": "other-plan"}, "plan must be of this model"),
        ({"kind": "structured", "flops": 0.6, "plan": "own-plan", "head_score": "taylor"}, "head_score must be"),
    ],
)
def test_what_a_stage_cannot_do_is_said_before_any_training(place, typed, stage, line):
    for name, model in (("own", "base"), ("other", "wide")):  # which differ in nothing but the width of their layers
        asked = {"model": model, "train_data": "train.tsv", "out": f"{name}-plan", "overwrite": True, "quiet": True}
        assert typed(place, "plan", "structured", **asked)[0] == 0
    recipe = {"model": "base", "train_data": "train.tsv", "eval_data": "eval.tsv", "out": "never"}
    (place / "never.json").write_text(json.dumps({**recipe, "stages": [TUNE, stage]}))
    status, _, err = typed(place, "run", "never.json")
    assert status == 2
    assert line in err
    assert "stage 1" not in err
    assert not (place / "never").exists()


def test_rows_that_are_too_long_to_be_timed_are_refused_before_anything_is_measured(place, typed, monkeypatch):
    monkeypatch.setattr("niwaki.run.evaluation.measure", None)
    status, _, err = typed(place, "eval", model="base", eval_data="eval.tsv", latency_length=41, out="never")
    assert (status, "latency_length must be at most 40" in err) == (2, True)
