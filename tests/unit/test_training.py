"""Training: recovery moves a model towards the dense one, fine-tuning learns, and neither leaves anything behind."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from peft import PeftModel

import niwaki
from niwaki.adapters import attach_lora
from niwaki.errors import RequestError, WorkError
from niwaki.train.loop import task_loss, train_
from niwaki.train.recover import distillation_loss
from tiny import ROWS, batches, decoders, logits, tiny, with_lora


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("labels", [1, 3])
def test_recovery_moves_towards_the_dense_model(lora, labels):
    dense = tiny(labels=labels)
    dense = with_lora(dense) if lora else dense
    data = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches(count=4)]
    found = {}
    for epochs in (0, 10):
        model = copy.deepcopy(dense)
        niwaki.prune_(model, niwaki.Structured(flops=0.4, recover_epochs=epochs, recover_learning_rate=2e-3), data)
        with torch.no_grad():
            found[epochs] = sum(float(distillation_loss(model, dense, batch)) for batch in data)
        assert isinstance(model, PeftModel) == lora
        assert lora or not any("lora" in name for name, _ in model.named_parameters())
    assert found[10] < 0.9 * found[0]


@pytest.mark.parametrize("asked", [niwaki.Structured(flops=0.6), niwaki.LayerAdaptive(sparsity=0.5)])
def test_the_passes_of_recovery_are_counted(asked):
    passes = []
    for epochs in (0, 3):
        config = dataclasses.replace(asked, recover_epochs=epochs)
        result = niwaki.prune_(with_lora(tiny()), config, batches(count=2), training_data=batches(count=4))
        passes.append((result.forward_passes, result.backward_passes))
    assert passes[1] == (passes[0][0] + 2 * 3 * 2, passes[0][1] + 3 * 2)


def test_distillation_from_itself_is_nothing():
    model = tiny()
    with torch.no_grad():
        assert float(distillation_loss(model, model, batches()[0])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_padding_alone_is_nothing_to_distil(family):
    batch = {name: torch.zeros_like(value) for name, value in batches(family=family)[0].items() if name != "labels"}
    student = tiny(family, seed=1)
    loss = distillation_loss(student, tiny(family), batch)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in student.parameters())


def test_padding_does_not_matter_to_distillation():
    student, teacher = tiny(seed=1), tiny(seed=2)
    batch = batches(count=1, rows=1)[0]
    real = int(batch["attention_mask"].sum())
    cut = {name: value[:, :real] for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        losses = [float(distillation_loss(student, teacher, each)) for each in (batch, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("family", ROWS)
def test_finetuning_learns_and_is_repeatable(family):
    data = batches(count=4, family=family)
    for batch in data:
        if family in decoders():  # a word, again and again
            batch["input_ids"] = batch["input_ids"][:, :1] * batch["attention_mask"]
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        else:
            batch["labels"] = batch["input_ids"][:, 0] % 3
    first = niwaki.finetune(tiny(family), niwaki.Finetune(learning_rate=3e-3), data)[1]
    tuned = []
    for _ in range(2):
        model, result = niwaki.finetune(tiny(family), niwaki.Finetune(epochs=8, learning_rate=6e-3), data)
        tuned.append(model)
        assert result.details["loss"] < 0.9 * first.details["loss"]
    assert torch.equal(logits(tuned[0], data[0]), logits(tuned[1], data[0]))


@pytest.mark.parametrize("masked", [False, True])
def test_all_weights_are_trained_where_that_is_asked(masked):
    model, data = tiny(), batches()
    if masked:
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), data)
    model.distilbert.embeddings.requires_grad_(False)
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned, done = niwaki.finetune(model, niwaki.Finetune(full=True, epochs=2), data)
    assert tuned is model
    assert done.details["loss"] > 0
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    for name, value in model.state_dict().items():
        assert name.endswith("bits") or not torch.equal(value, before[name])
        if masked and name.endswith("lin1.weight"):
            assert torch.equal(value == 0, before[name] == 0)
    assert niwaki.Finetune(full=True).rate < niwaki.Finetune().rate
    with pytest.raises(RequestError, match="full must be asked of a model without an adapter"):
        niwaki.finetune(with_lora(tiny()), niwaki.Finetune(full=True), data)
    with pytest.raises(RequestError, match="lora_rank must not be given with full"):
        niwaki.Finetune(full=True, lora_rank=4)


def test_finetuning_goes_on_with_the_adapter_that_is_there():
    model = with_lora(tiny())
    base = {name: p.clone() for name, p in model.named_parameters() if "lora_" not in name and "modules" not in name}
    before = logits(model, batches()[0])
    tuned, _ = niwaki.finetune(model, niwaki.Finetune(), batches())
    assert tuned is model
    assert not torch.equal(logits(tuned, batches()[0]), before)
    after = dict(tuned.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in base.items())


def test_new_lora_has_a_saved_head_and_skips_empty_linears():
    model = tiny()
    niwaki.prune_(model, niwaki.Structured(flops=0.3, min_heads=0, min_neurons=0, head_score="random"), batches())
    peft = attach_lora(model, 4)
    saved = {
        name.split(".modules_to_save")[0].rpartition(".")[2]
        for name, _ in peft.named_parameters()
        if "modules_to_save" in name
    }
    assert saved == {"pre_classifier", "classifier"}
    assert torch.isfinite(logits(peft, batches()[0])).all()


def test_a_loss_that_is_not_finite_names_the_step():
    model = tiny()
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(WorkError, match="step 1"):
        train_(model, batches(), task_loss, epochs=1, learning_rate=1e-3, seed=0)


@pytest.mark.parametrize("progress", [True, False])
def test_the_step_is_counted_whether_or_not_it_is_shown(progress, capsys):
    losses = iter([1.0, 1.0, math.nan])

    def loss(model, batch):
        return task_loss(model, batch) * next(losses)

    with pytest.raises(WorkError, match="step 3"):
        train_(tiny(), batches(4), loss, epochs=1, learning_rate=1e-6, seed=0, progress=progress)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_(tiny().train(), batches(), task_loss, epochs=1, learning_rate=1e-3, seed=0)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)
