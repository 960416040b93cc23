"""A new head begins with what its labels are like on average; one that was trained does not."""

from __future__ import annotations

import math

import pytest
import torch

import niwaki
from niwaki.anatomy import CLASSIFIER, TAGGER, unwrap
from niwaki.checkpoint import NewLabels
from niwaki.checkpoint.task import output_layer
from tiny import batches, tiny

NAMES = ("a", "b", "c")
CLASSES = torch.tensor([0, 0, 0, 0, 2, 2, 0, 0, 0, 2, 0, 0])
SEVERAL = torch.tensor([[0.0, 1.0, 0.0]] * 9 + [[1.0, 1.0, 0.0]] * 3)
TAGS = torch.full((12, 12), -100).index_fill(1, torch.tensor([1, 2]), 1).index_fill(1, torch.tensor([3]), 0)
KINDS = {
    "class": (NewLabels(NAMES), CLASSES, [math.log(10 / 15), math.log(1 / 15), math.log(4 / 15)]),
    "several": (
        NewLabels(NAMES, problem="multi_label_classification"),
        SEVERAL,
        [math.log(4 / 10), math.log(13 / 1), math.log(1 / 13)],
    ),
    "number": (NewLabels(("score",), problem="regression"), torch.linspace(2.0, 4.0, 12), [3.0]),
    "token": (NewLabels(NAMES, TAGGER), TAGS, [math.log(13 / 39), math.log(25 / 39), math.log(1 / 39)]),
}


def bias_of(model):
    return output_layer(unwrap(model))[1].bias.detach()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("family", ["distilbert", "roberta"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_begins_at_the_mean_of_its_labels(kind, family, full, tmp_path):
    labels, target, prior = KINDS[kind]
    tiny(family).base_model.save_pretrained(tmp_path / "body")
    model = niwaki.load(tmp_path / "body", labels=labels)
    assert not bias_of(model).any()
    data = [{**batches(family=family)[0], "labels": target}]
    tuned, _ = niwaki.finetune(model, niwaki.Finetune(learning_rate=1e-9, full=full, epochs=1), data)
    torch.testing.assert_close(bias_of(tuned), torch.tensor(prior), rtol=0, atol=1e-5)
    merged = niwaki.merge_(tuned)
    niwaki.save(merged, tmp_path / "trained")
    again, _ = niwaki.finetune(
        niwaki.load(tmp_path / "trained"),
        niwaki.Finetune(learning_rate=1e-9, epochs=1),
        [{**data[0], "labels": target.flip(-1)}],
    )
    assert torch.allclose(bias_of(again), bias_of(merged), atol=1e-6)


def test_a_head_that_was_trained_before_stays_in_a_second_stage(tmp_path):
    tiny().base_model.save_pretrained(tmp_path / "body")
    model = niwaki.load(tmp_path / "body", labels=NAMES)
    data = [{**batches()[0], "labels": CLASSES}]
    tuned, _ = niwaki.finetune(model, niwaki.Finetune(learning_rate=0.1, epochs=2), data)
    before = bias_of(tuned).clone()
    niwaki.finetune(tuned, niwaki.Finetune(learning_rate=1e-9, epochs=1), data)
    torch.testing.assert_close(bias_of(tuned), before, rtol=0, atol=1e-6)


def test_a_training_that_fails_leaves_the_head_as_it_was(tmp_path, monkeypatch):
    tiny().base_model.save_pretrained(tmp_path / "body")
    model = niwaki.load(tmp_path / "body", labels=NewLabels(NAMES, CLASSIFIER))
    monkeypatch.setattr("niwaki.methods.finetune.train_", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        niwaki.finetune(model, niwaki.Finetune(), [{**batches()[0], "labels": CLASSES}])
    assert not bias_of(model).any()


def test_no_training_goes_into_how_rare_labels_are(tmp_path):
    """From a bias of zero the mean loss of so short a training is that of a coin, log 2."""
    tiny().base_model.save_pretrained(tmp_path / "body")
    names = tuple(f"l{index}" for index in range(20))
    model = niwaki.load(tmp_path / "body", labels=NewLabels(names, problem="multi_label_classification"))
    data = batches(8)
    for batch in data:
        batch["labels"] = torch.nn.functional.one_hot(batch["input_ids"][:, 1] % 20, 20).float()
    _, result = niwaki.finetune(model, niwaki.Finetune(learning_rate=1e-3, epochs=1), data)
    rate = torch.tensor(1 / 20)
    entropy = -float(rate * rate.log() + (1 - rate) * (1 - rate).log())
    assert result.details["loss"] < 1.2 * entropy
