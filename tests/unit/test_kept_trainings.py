"""A training that is stopped goes on after the last step that was kept, and ends in the same bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import niwaki
from niwaki.begun import begun_kept
from niwaki.numerics.digest import digest
from niwaki.train.step import Stepper
from tiny import CUT, batches, tiny

MOVING = {"sparsity": 0.6, "interval": 2, "window": 1, "reach": 0.5, "stop": 0.7, "lora_rank": 4, "keep_layers": (0,)}
TRAININGS = {
    "early stopping": niwaki.Finetune(lora_rank=4, epochs=2, early_stopping=9, gradient_accumulation=2),
    "all weights": niwaki.Finetune(full=True, learning_rate_schedule="cosine"),
    "two recoveries": niwaki.Structured(flops=0.6, recover_epochs=1, steps=2, **CUT),
    "moving masks": niwaki.DynamicSparsityTraining(**MOVING, epochs=2, teacher="none", mixed_precision="fp16"),
}


@pytest.fixture
def steps(monkeypatch):
    """Lets trainings make as many steps as it says, in all; how many were made."""
    real, state = Stepper.step, {"left": 1000, "made": 0}

    def step(self, batches, number):
        if not state["left"]:
            raise KeyboardInterrupt
        state["left"], state["made"] = state["left"] - 1, state["made"] + 1
        return real(self, batches, number)

    monkeypatch.setattr(Stepper, "step", step)

    def allow(count):
        state.update(left=count, made=0)
        return state

    return allow


def trained(config):
    """What a training leaves: its tensors, and what is said of it."""
    model, data = tiny(), batches(10)
    if isinstance(config, niwaki.Finetune):
        model, done = niwaki.finetune(model, config, data)
    else:
        done = niwaki.prune_(model, config, data)
    tensors = digest([*model.named_parameters(), *model.named_buffers()])
    course = {**done.details, "forward": done.forward_passes, "backward": done.backward_passes}
    return tensors, course


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_was_stopped_ends_in_the_same_bytes(tmp_path, steps, name):
    config, made = TRAININGS[name], steps(1000)
    whole = trained(config)
    count = made["made"]
    torch.manual_seed(7)  # nothing is drawn from where the global state happens to be
    for stop in (count // 2, 2):
        steps(stop)
        with begun_kept(tmp_path), pytest.raises(KeyboardInterrupt):
            trained(config)
    made = steps(1000)
    with begun_kept(tmp_path):
        assert trained(config) == whole
        assert 0 < made["made"] <= count - count // 2
        made = steps(0)
        assert trained(config) == whole  # of which nothing is left to do


@pytest.mark.parametrize("file", ["training.safetensors", "training.json"])
def test_what_was_damaged_or_is_of_another_training_is_not_taken_up(tmp_path, steps, file):
    config = TRAININGS["all weights"]
    whole = trained(config)
    steps(8)
    with begun_kept(tmp_path), pytest.raises(KeyboardInterrupt):
        trained(config)
    (kept,) = tmp_path.rglob(file)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    made = steps(1000)
    with begun_kept(tmp_path):
        assert trained(config) == whole
        assert made["made"] == 10
        made = steps(1000)
        trained(dataclasses.replace(config, weight_decay=0.1))
        assert made["made"] == 10


def test_a_training_that_cannot_be_kept_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("niwaki.train.kept.save_file", full)
    with begun_kept(tmp_path):
        trained(niwaki.Finetune(lora_rank=4))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_trainings_are_kept_only_where_that_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(niwaki.Finetune(lora_rank=4))
    assert not list(tmp_path.iterdir())
