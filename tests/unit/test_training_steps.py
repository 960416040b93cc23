"""What a step of a training is made of: several batches, half precision, skipped steps, layers that run again."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import niwaki
from helpers_tasks import OTHERS, batches_of, model_of
from niwaki.adapters import masks_of
from niwaki.anatomy import layers_of, layers_run_again, supported_task
from niwaki.config import Training
from niwaki.errors import RequestError, WorkError
from niwaki.numerics.digest import digest
from niwaki.train.loop import task_loss, train_
from niwaki.train.step import Stepper, rows_in
from tiny import batches, logits, tiny, with_lora

TASKS_OF_ENCODERS = [task for task in OTHERS if task.labels != "none"]
MASKED = niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", allocation="uniform", repair="none")
MOVING = {"sparsity": 0.6, "interval": 1, "window": 1, "reach": 0.5, "stop": 0.9}


def parameters(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def digest_of(model):
    return digest([*model.named_parameters(), *model.named_buffers()])


def endless(model, batch, _whole):
    """A loss that is finite, with gradients that are not."""
    loss = task_loss(model, batch)
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


def test_a_batch_without_labels_teaches_and_measures_nothing():
    data = batches(9, rows=2, family="llama", seed=3)
    for place in (1, 4):
        data[place]["labels"] = torch.full_like(data[place]["labels"], -100)
    tuned, _ = niwaki.finetune(tiny("llama"), niwaki.Finetune(epochs=1, gradient_accumulation=2, full=True), data)
    assert all(bool(value.isfinite().all()) for value in tuned.parameters())
    model = tiny("llama")
    stepper = Stepper(model, parameters(model), torch.optim.SGD(model.parameters()), task_loss,
                      supported_task(model).losses, Training())  # fmt: skip
    assert stepper.loss_on(data[:2]) == pytest.approx(stepper.loss_on(data[:1]))
    assert stepper.step([data[1]], 1) == (0.0, False)
    niwaki.prune_(tiny("llama"), niwaki.Structured(flops=0.5, head_score="taylor", repair="none"), data)
    with pytest.raises(RequestError, match="data must hold labels for a loss to be taken of, got none but -100"):
        niwaki.finetune(tiny("llama"), niwaki.Finetune(epochs=1), [data[1]])


@pytest.mark.parametrize("task", TASKS_OF_ENCODERS, ids=lambda task: task.name)
def test_the_rows_of_two_processes_are_all_rows(monkeypatch, task):
    """Each runs every second row, which models and losses of Transformers take for one block of memory.

    What is there once for all rows, or not at all, each has.
    """
    model, (batch,) = model_of(task, "bert"), batches_of(task, count=1)
    batch |= {"position_ids": torch.arange(batch["input_ids"].shape[-1])[None], "inputs_embeds": None}
    stepper = Stepper(model, parameters(model), torch.optim.SGD(model.parameters()), task_loss,
                      supported_task(model).losses, Training())  # fmt: skip
    alone = stepper.loss_on([batch])
    monkeypatch.setattr("niwaki.train.step.count", lambda: 2)
    monkeypatch.setattr("niwaki.train.step.add_up", lambda value: value)
    shares = []
    for process in (0, 1):
        monkeypatch.setattr("niwaki.train.step.number", lambda process=process: process)
        shares.append(stepper.loss_on([batch]))
    assert sum(shares) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_batches_of_one_step_are_one_large_batch(family):
    large = batches(rows=9, family=family)[0]
    parts = [{name: value[rows] for name, value in large.items()} for rows in (slice(0, 6), slice(6, 9))]
    if family == "llama":  # of which rows have losses by their tokens
        parts[0]["labels"][:5] = large["labels"][:5] = -100
    models = []
    for data, accumulation in ((parts, 2), ([large], 1), (parts, 1)):
        model = tiny(family).double()
        options = Training(gradient_accumulation=accumulation)
        over = supported_task(model).losses
        done = train_(model, data, task_loss, options, epochs=3, learning_rate=1e-3, seed=0, over=over)
        assert done.batches == 3 * len(data)
        models.append((model, done.loss))
    (parts_of_a_step, loss), (one_step, wanted), (two_steps, _) = models
    for value, same in zip(parts_of_a_step.parameters(), one_step.parameters(), strict=True):
        torch.testing.assert_close(value, same, rtol=1e-9, atol=1e-9)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert not torch.allclose(logits(two_steps, large), logits(one_step, large), rtol=1e-6, atol=1e-6)


def test_a_short_last_step_ends_an_epoch():
    seen = []

    def loss_of(model, batch, _whole):
        seen.append(int(batch["input_ids"][0, 0]))
        return model.weight.sum()

    data = [{"input_ids": torch.full((1, 1), number)} for number in range(5)]
    done = train_(
        nn.Linear(1, 1), data, loss_of, Training(gradient_accumulation=2), epochs=2, learning_rate=0.1, seed=0
    )
    assert [sorted(seen[:5]), sorted(seen[5:])] == [list(range(5))] * 2
    assert done.batches == 10


@pytest.mark.parametrize("norm", [0.0, 0.5, 100.0])
def test_the_gradient_of_a_step_is_clipped(norm):
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = {"input_ids": torch.tensor([[1.0, 2.0, 2.0]])}
    stepper = Stepper(
        model,
        list(model.parameters()),
        optimizer,
        lambda model, batch, _whole: model(batch["input_ids"]).sum(),
        rows_in,
        Training(max_gradient_norm=norm),
    )
    stepper.step([batch], 1)
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.5 if norm == 0.5 else 3.0, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [0.0, 1.0, 8 / 9, 1 / 9]),
        ({"learning_rate_warmup": 0.5, "learning_rate_schedule": "constant"}, [0.0, 0.2, 0.4, 1.0]),
        ({"learning_rate_warmup": 0.0, "learning_rate_schedule": "cosine"}, [1.0, 0.9755, 0.9045, 0.0245]),
    ],
)
def test_the_rate_goes_as_asked_and_weights_decay(options, rates):
    found = []

    class Rates:
        final = True

        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            found.append(self.optimizer.param_groups[0]["lr"])

    model = nn.Linear(1, 1, bias=False)
    before = float(model.weight.detach())
    train_(
        model,
        [{"input_ids": torch.zeros(1, 1)}] * 10,
        lambda model, batch, _whole: model.weight.sum() * 0,
        Training(weight_decay=0.5, **options),
        epochs=1,
        learning_rate=0.1,
        seed=0,
        attach=lambda optimizer, steps, scaler: Rates(optimizer),
    )
    assert [rate / 0.1 for rate in (*found[:3], found[-1])] == pytest.approx(rates, abs=1e-4)
    assert float(model.weight.detach()) == pytest.approx(before * math.prod(1 - 0.5 * rate for rate in found), rel=1e-5)


def test_a_step_that_the_scaler_skips_moves_no_weight_and_no_mask():
    model, batch = with_lora(tiny()), batches()[0]
    optimizer = torch.optim.AdamW(parameters(model), 1e-2)
    options = Training(mixed_precision="fp16")
    stepper = Stepper(model, parameters(model), optimizer, task_loss, rows_in, options)
    controller = niwaki.DynamicSparsity(**MOVING).attach(model, optimizer, 10, scaler=stepper.scaler)
    moved = 0
    for number in range(1, 13):
        stepper.loss_of = endless if number in (3, 4) else task_loss
        before, done = digest_of(model), controller.done
        loss, made = stepper.step([batch], number)
        controller.step()
        assert math.isfinite(loss)
        assert made <= (number not in (3, 4))
        assert controller.done == done + made
        assert (digest_of(model) != before) == made
        moved += made
    assert moved > 7
    assert controller.zeros == round(0.6 * controller.total)


def test_gradients_that_are_never_finite_end_the_training():
    options = Training(mixed_precision="fp16")
    with pytest.raises(WorkError, match=r"mixed_precision must be bf16 or no .* too large for float16 at step 17"):
        train_(tiny(), batches(), endless, options, epochs=20, learning_rate=1e-3, seed=0)


def test_in_half_precision_losses_are_near_masks_hold_and_weights_stay_in_float32():
    data = batches(4)
    for asked in (
        niwaki.Finetune(epochs=2, full=True),
        niwaki.DynamicSparsityTraining(**MOVING, epochs=4, learning_rate=1e-3),
    ):
        losses, models = [], []
        for precision in ("no", "bf16"):
            model = tiny()
            if isinstance(asked, niwaki.Finetune):
                niwaki.prune_(model, MASKED, data)
            config = dataclasses.replace(asked, mixed_precision=precision)
            verb = niwaki.finetune if isinstance(asked, niwaki.Finetune) else niwaki.prune_
            made = verb(model, config, data)
            losses.append((made[1] if isinstance(made, tuple) else made).details["loss"])
            models.append(model)
        assert losses[1] == pytest.approx(losses[0], rel=0.1)
        assert losses[1] != losses[0]
        assert {parameter.dtype for parameter in models[1].parameters()} == {torch.float32}
        zeros = [sum(int((~mask).sum()) for mask in masks_of(model).values()) for model in models]
        assert zeros[0] == zeros[1] > 0


@pytest.mark.parametrize("family", ["distilbert", "llama", "mobilellm"])
def test_layers_that_run_again_give_the_same_gradients(family):
    batch, gradients, runs = batches(family=family)[0], [], []
    for again in (False, True):
        model, ran = tiny(family).train(), []
        layers_of(model)[0].register_forward_pre_hook(lambda *_, ran=ran: ran.append("from outside"))
        next(layers_of(model)[0].children()).register_forward_pre_hook(lambda *_, ran=ran: ran.append("inside"))
        torch.manual_seed(0)  # of dropout
        if again:
            with layers_run_again(model):
                task_loss(model, batch).backward()
        else:
            task_loss(model, batch).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        runs.append((ran.count("from outside"), ran.count("inside")))
        assert not any("forward" in vars(layer) for layer in layers_of(model))
        assert getattr(model.config, "use_cache", None) == getattr(tiny(family).config, "use_cache", None)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert runs[1] == (runs[0][0], 2 * runs[0][1])


@pytest.mark.parametrize(
    "asked",
    [
        niwaki.Finetune(),
        niwaki.Structured(flops=0.6, repair="none", recover_epochs=1),
        niwaki.DynamicSparsityTraining(**MOVING, epochs=4),
    ],
    ids=type,
)
def test_a_training_whose_layers_run_again_is_the_same(asked):
    found = []
    for again in (False, True):
        config = dataclasses.replace(asked, gradient_checkpointing=again)
        model = tiny()
        made = (niwaki.finetune if isinstance(asked, niwaki.Finetune) else niwaki.prune_)(model, config, batches(2))
        found.append(digest_of(made[0] if isinstance(made, tuple) else model))
    assert found[0] == found[1]


def test_a_training_that_learns_nothing_more_ends_early_as_it_was_best():
    model, data = tiny(), batches(8)
    dense = copy.deepcopy(model)
    tuned, done = niwaki.finetune(model, niwaki.Finetune(epochs=4, learning_rate=10.0, early_stopping=2), data)
    assert done.backward_passes == 5 / 8  # of 28 steps the second tenth ends with the fifth
    assert done.forward_passes == (5 + 3) / 8
    assert torch.equal(logits(tuned, data[0]), logits(dense, data[0]))
    with pytest.raises(RequestError, match=r"early_stopping must be 0 for fewer than 8 batches .* got 2 for 7"):
        niwaki.finetune(tiny(), niwaki.Finetune(early_stopping=2), data[:7])


def test_moving_masks_are_final_before_a_training_ends_early():
    asked = {**MOVING, "stop": 0.7}
    config = niwaki.DynamicSparsityTraining(**asked, epochs=4, learning_rate=0.6, early_stopping=1)
    done = niwaki.prune_(tiny(), config, batches(8))
    assert done.achieved == pytest.approx(0.6, abs=1e-3)
    assert 0.7 * 4 * 7 / 8 <= done.backward_passes < 4 * 7 / 8


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"mixed_precision": "int8"}, "mixed_precision must be one of bf16, fp16, no, got 'int8'"),
        ({"learning_rate_schedule": "step"}, "learning_rate_schedule must be one of constant, cosine, linear"),
        ({"gradient_accumulation": 0}, "gradient_accumulation must be at least 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"max_gradient_norm": math.nan}, "max_gradient_norm must be a finite number, got nan"),
        ({"learning_rate_warmup": 1.0}, r"learning_rate_warmup must be in \[0, 1\), got 1"),
        ({"early_stopping": -1}, "early_stopping must be at least 0, got -1"),
    ],
)
def test_options_of_a_training_are_checked(option, words):
    for stage in (
        lambda: niwaki.Finetune(**option),
        lambda: niwaki.DynamicSparsityTraining(sparsity=0.5, **option),
        lambda: niwaki.Structured(flops=0.5, recover_epochs=1, **option),
    ):
        with pytest.raises(RequestError, match=words):
            stage()


@pytest.mark.parametrize(
    "option",
    [
        {"recover_learning_rate": 1e-3},
        {"mixed_precision": "bf16"},
        {"gradient_accumulation": 2},
        {"gradient_checkpointing": True},
        {"max_gradient_norm": 2.0},
        {"weight_decay": 0.0},
        {"learning_rate_warmup": 0.2},
        {"learning_rate_schedule": "cosine"},
        {"early_stopping": 1},
    ],
)
def test_options_of_a_recovery_are_refused_without_one(option):
    (name,) = option
    for stage in (
        lambda: niwaki.Structured(flops=0.5, **option),
        lambda: niwaki.LayerAdaptive(sparsity=0.5, **option),
    ):
        with pytest.raises(RequestError, match=f"{name} must not be given with recover_epochs 0"):
            stage()
