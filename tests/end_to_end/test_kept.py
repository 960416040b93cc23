"""A recipe that is stopped goes on after the stages and steps that were done, and ends in the same bytes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

import niwaki
from helpers_command import contents
from helpers_text import letter_tokenizer
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Recipe, Structured, Vocabulary
from niwaki.errors import WorkError
from niwaki.run import run_recipe, stages
from niwaki.train.step import Stepper
from tiny import tiny

DYNAMIC = DynamicSparsityTraining(sparsity=0.6, epochs=6, interval=1, window=1, reach=0.5, stop=0.9)


def recipe_of(*steps, **options):
    data = {"train_data": "train.tsv", "eval_data": "eval.tsv"}
    return Recipe(**{"model": "base", "out": "stopped", "stages": steps} | data | options)


def stopped_at(stop, recipe, monkeypatch, inside=0):
    """Run the recipe until stage `stop` (from 0) begins, or until so many steps of training inside it are made.

    The numbers of the stages that were done.
    """
    do, done = stages._do, []

    def until(work, stage, folder, plan):
        number = recipe.stages.index(stage)
        if number == stop and not inside:
            raise WorkError("no more")
        if number == stop:
            with monkeypatch.context() as patched:
                patched.setattr(Stepper, "step", steps_until(inside))
                return do(work, stage, folder, plan)
        done.append(number)
        return do(work, stage, folder, plan)

    monkeypatch.setattr(stages, "_do", until)
    if stop is None:
        run_recipe(recipe, quiet=True)
    else:
        with pytest.raises(WorkError, match="no more"):
            run_recipe(recipe, quiet=True)
    monkeypatch.setattr(stages, "_do", do)
    return done


def steps_until(stop):
    """Steps of a training, of which there are no more than `stop`."""
    real, made = Stepper.step, []

    def step(self, batches, number):
        if len(made) == stop:
            raise WorkError("no more")
        made.append(number)
        return real(self, batches, number)

    return step


@pytest.mark.parametrize(
    ("steps", "stop", "inside", "options"),
    [
        ((Finetune(lora_rank=4), LayerAdaptive(sparsity=0.4), Structured(flops=0.7)), 2, 0, {"keep_adapter": True}),
        ((Vocabulary(), DYNAMIC, LayerAdaptive(sparsity=0.7, recover_epochs=1)), 2, 1, {}),
    ],
    ids=["an adapter and masks", "a tokenizer and a history"],
)
def test_the_bytes_are_those_of_a_run_that_nobody_stopped(place, monkeypatch, steps, stop, inside, options):
    monkeypatch.chdir(place)
    recipe = recipe_of(*steps, **options)
    assert stopped_at(None, recipe, monkeypatch) == list(range(len(steps)))
    whole = contents(place / "stopped")
    shutil.rmtree(place / "stopped")
    before = {path.name for path in place.iterdir()}
    assert stopped_at(stop, recipe, monkeypatch, inside) == list(range(stop))
    assert {path.name for path in place.iterdir()} - before == {".stopped.niwaki"}
    assert len(list((place / ".stopped.niwaki").rglob("training.json"))) == bool(inside)
    monkeypatch.setattr(Stepper, "step", steps_until(2 - inside))  # no more are left
    assert stopped_at(None, recipe, monkeypatch) == list(range(stop, len(steps)))
    assert {path.name for path in place.iterdir()} - before == {"stopped"}
    assert contents(place / "stopped") == whole
    result = json.loads((place / "stopped" / "result.json").read_text())
    assert result["run"]["seconds"] >= sum(stage["seconds"] for stage in result["stages"])  # those of both runs
    shutil.rmtree(place / "stopped")


def test_rows_that_a_later_stage_holds_out_were_not_trained_on(place, monkeypatch):
    monkeypatch.chdir(place)
    tuning, half = Finetune(lora_rank=4), Structured(flops=0.7, repair="none")
    recipe, held = recipe_of(tuning, half), recipe_of(tuning, Structured(keep_quality=0.1, repair="none"))
    assert stopped_at(1, recipe, monkeypatch) == [0]
    assert stopped_at(1, held, monkeypatch) == [0]
    assert stopped_at(1, held, monkeypatch) == []
    shutil.rmtree(place / ".stopped.niwaki")


def test_other_questions_are_asked_before_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    niwaki.save(tiny("llama"), tmp_path / "llama", letter_tokenizer())
    for name, letters in (("train", "a b c d "), ("eval", "d c e ")):
        (tmp_path / f"{name}.txt").write_text(letters * 40)
    questions, row = tmp_path / "questions.jsonl", '{"question": "a b", "choices": ["c", "d e"], "answer": %d}\n'
    data = {"model": "llama", "train_data": "train.txt", "eval_data": "eval.txt", "max_length": 16}
    half = Structured(flops=0.8, repair="none")
    recipe = recipe_of(LayerAdaptive(sparsity=0.3, repair="none"), half, tasks="questions.jsonl", **data)
    questions.write_text(row % 0)
    assert stopped_at(1, recipe, monkeypatch) == [0]
    assert stopped_at(1, recipe, monkeypatch) == []
    questions.write_text(row % 1)
    assert stopped_at(1, recipe, monkeypatch) == [0]


def test_what_is_kept_is_used_where_nothing_before_it_is_another(place, monkeypatch):
    monkeypatch.chdir(place)
    half, sparse = Structured(flops=0.7, repair="none"), LayerAdaptive(sparsity=0.3, weight_score="magnitude")
    recipe = recipe_of(half, sparse)
    assert stopped_at(1, recipe, monkeypatch) == [0]
    other = dataclasses.replace(sparse, sparsity=0.5)
    assert stopped_at(1, dataclasses.replace(recipe, stages=(half, other)), monkeypatch) == []
    longer = dataclasses.replace(recipe, stages=(half, other, dataclasses.replace(sparse, sparsity=0.6)))
    assert stopped_at(2, longer, monkeypatch) == [1]
    assert stopped_at(1, recipe, monkeypatch) == []  # the model after the first stage is still there
    assert stopped_at(1, dataclasses.replace(recipe, resume=False), monkeypatch) == [0]
    seeded = [dataclasses.replace(recipe, seed=seed) for seed in range(6)]
    for seed, done in ((1, [0]), (0, []), (2, [0]), (1, []), (3, [0]), (0, [0])):  # the last three requests stay
        assert stopped_at(1, seeded[seed], monkeypatch) == done
    for seed, at in ((4, 0), (5, 0), (3, 1)):  # what leaves nothing takes nobody's place in the end
        assert stopped_at(at, seeded[seed], monkeypatch) == []
    kept = place / ".stopped.niwaki" / "kept"
    assert len([path for path in kept.iterdir() if path.is_dir()]) == 2
    (place / "stopped").mkdir()
    for weights in kept.rglob("model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert stopped_at(1, seeded[0], monkeypatch) == [0]
    shutil.rmtree(place / ".stopped.niwaki")
    (place / "stopped").rmdir()
