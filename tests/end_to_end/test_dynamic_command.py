"""`niwaki prune dynamic` as a user types it."""

from __future__ import annotations

import json

import pytest
import torch

import niwaki
from niwaki.methods.dynamic import read_history

FLAGS = ["--interval", 2, "--batch-size", 8]
DATA = ["--train-data", "train.tsv", "--eval-data", "eval.tsv"]


def run(typed, place, *words):
    return typed(place, "prune", "dynamic", *FLAGS, *words)


@pytest.mark.parametrize("model", ["lora", "base"])
def test_dynamic(place, typed, model):
    out = f"moved-{model}"
    words = [
        "--model",
        model,
        "--out",
        out,
        "--sparsity",
        0.7,
        "--epochs",
        2,
        "--drop",
        "magnitude",
        "--grow",
        "gradient",
    ]
    status, said, err = run(typed, place, *DATA, *words, "--allocation", "erk", "--reallocation", "within")
    assert status == 0, err
    assert "dynamic: 0.7000 of the blocks' linear weights are zero (0.7 asked)" in said
    assert "updates in 10 steps" in err
    result = json.loads((place / out / "result.json").read_text())
    stage, loaded = result["stages"][0], niwaki.load(place / out)
    weights = sum(layer["total"] for layer in result["layers"])
    assert stage["zeros"] == round(0.7 * weights) == result["pruned"]["zeros"]
    assert sum(layer["total"] - layer["kept"] for layer in result["layers"]) == stage["zeros"]
    assert len({row.step for row in read_history(place / out / "dynamic.jsonl")}) == stage["updates"]
    status, _, err = typed(place, "run", f"{out}/recipe.yaml", "--overwrite", "--quiet")
    assert status == 0, err
    for name, value in niwaki.load(place / out).state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_it_learns_from_labels_and_compacts(place, typed):
    words = [
        "--model",
        "body",
        "--out",
        "labelled",
        "--sparsity",
        0.5,
        "--epochs",
        20,
        "--teacher",
        "none",
        "--compact",
    ]
    data = ["--train-data", "learnable.tsv", "--eval-data", "learnable.tsv"]
    status, _, err = run(typed, place, *data, *words, "--quiet")
    assert status == 0, err
    result = json.loads((place / "labelled" / "result.json").read_text())
    assert result["pruned"]["quality"]["accuracy"] > 0.9


def test_a_recipe_of_two_stages(place, typed):
    recipe = {
        "model": "lora", "train_data": "train.tsv", "eval_data": "eval.tsv", "out": "staged", "batch_size": 8,
        "stages": [
            {"kind": "layer-adaptive", "sparsity": 0.4, "allocation": "uniform"},
            {"kind": "dynamic", "sparsity": 0.7, "interval": 2, "epochs": 2},
        ],
    }  # fmt: skip
    (place / "staged.json").write_text(json.dumps(recipe))
    status, _, err = typed(place, "run", "staged.json", "--quiet")
    assert status == 0, err
    result = json.loads((place / "staged" / "result.json").read_text())
    assert [stage["name"] for stage in result["stages"]] == ["layer-adaptive", "dynamic"]
    assert result["stages"][1]["budget"]["achieved"] == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sparsity", 1.5], ["sparsity", "[0, 1)", "1.5"]),
        (["--sparsity", 0.5, "--interval", 0], ["interval must be at least 1", "got 0"]),
        (["--sparsity", 0.5, "--interval", 1000], ["steps are needed", "got 10"]),
        (["--sparsity", 0.5, "--grow", "gradiant"], ["grow", "did you mean 'gradient'"]),
        (["--sparsity", 0.5, "--pattern", "3x1"], ["pattern 3x1", "layer.0.query"]),
        (["--sparsity", 0.5, "--teacher", "human"], ["teacher", "dense, none"]),
    ],
)
def test_wrong_requests_are_one_line(place, typed, flags, words):
    status, _, err = run(typed, place, *DATA, "--model", "lora", "--out", "no", *flags)
    lines = [line for line in err.splitlines() if line.startswith("niwaki:")]
    assert status == 2, err
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]
    assert not (place / "no").exists()
