"""Training: recovery moves a model towards the dense one, fine-tuning learns, and neither leaves anything behind."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter

import pytest
import torch
from peft import PeftModel

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.adapters import attach_lora
from niwaki.anatomy import layers_of, linears_of
from niwaki.config import Training
from niwaki.config.recovery import RECOVER_LOSSES
from niwaki.data import Batches
from niwaki.errors import RequestError, WorkError
from niwaki.numerics.layout import to_out_in
from niwaki.train import recover
from niwaki.train.data import hold_out
from niwaki.train.loop import task_loss, train_
from niwaki.train.recover import distillation_loss
from niwaki.train.step import Stepper, rows_in
from tiny import CUT, ROWS, batches, decoders, logits, tiny, with_lora

MAGNITUDE = niwaki.LayerAdaptive(sparsity=0.8, weight_score="magnitude", allocation="uniform", repair="none")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("labels", [1, 3])
def test_recovery_moves_towards_the_dense_model(lora, labels):
    dense = tiny(labels=labels)
    dense = with_lora(dense) if lora else dense
    data = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches(count=4, rows=6)]
    found = {}
    for epochs in (0, 10):
        model = copy.deepcopy(dense)
        rate = {"recover_learning_rate": 2e-3} if epochs else {}
        niwaki.prune_(model, niwaki.Structured(flops=0.4, recover_epochs=epochs, **rate), data)
        with torch.no_grad():
            found[epochs] = sum(float(distillation_loss(model, dense, batch)) for batch in data)
        assert isinstance(model, PeftModel) == lora
        assert lora or not any("lora" in name for name, _ in model.named_parameters())
    assert found[10] < 0.9 * found[0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("asked", [niwaki.Structured(flops=0.4, **CUT), MAGNITUDE])
def test_all_weights_that_are_left_recover_where_that_is_asked(asked, lora):
    dense, data = tiny(), batches(count=4)
    dense = with_lora(dense) if lora else dense
    dense.get_input_embeddings().requires_grad_(False)
    found = {}
    for epochs in (0, 10):
        model = copy.deepcopy(dense)
        options = {"recover_full": True, "recover_learning_rate": 2e-3} if epochs else {}
        niwaki.prune_(model, dataclasses.replace(asked, recover_epochs=epochs, **options), data)
        found[epochs] = sum(float(distillation_loss(model, dense, batch).detach()) for batch in data), model
    assert found[10][0] < 0.9 * found[0][0]
    before, after = (dict(found[epochs][1].named_parameters()) for epochs in (0, 10))
    assert {name: p.requires_grad for name, p in after.items()} == {name: p.requires_grad for name, p in before.items()}
    assert torch.equal(*(found[epochs][1].get_input_embeddings().weight for epochs in (0, 10)))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if ".lin1." in name or "_layer_norm" in name} <= moved
    masks = [niwaki.adapters.masks_of(found[epochs][1]) for epochs in (0, 10)]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_it_is_the_best_on_held_out_batches_that_stays():
    model, data = tiny(), batches(count=4)
    before = copy.deepcopy(model.state_dict())
    train_(model, data, task_loss, epochs=2, learning_rate=10.0, seed=0, held_out=data[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train_(model, data, task_loss, epochs=2, learning_rate=1e-3, seed=0, held_out=data)
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("count", "held"), [(7, 0), (8, 1), (17, 2), (400, 16)])
@pytest.mark.parametrize("rows", [False, True])
def test_an_eighth_is_held_out_of_a_recovery(count, held, rows):
    data = [{"input_ids": torch.tensor([[number]])} for number in range(count)]
    if rows:
        data = Batches(
            [{"input_ids": [number], "attention_mask": [1]} for number in range(2 * count)], tiny_tokenizer(), 2
        )
    training, kept = hold_out(data, 3)
    numbers = [sorted(int(n) for batch in part for n in batch["input_ids"].flatten()) for part in (training, kept)]
    assert (len(training), len(kept)) == (count - held, held)
    assert sorted(numbers[0] + numbers[1]) == list(range(2 * count if rows else count))


@pytest.mark.parametrize("choices", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_what_a_model_was_fitted_to_is_held_out_last(rows, choices):
    """It says too much good of the fitted model: a recovery that helps elsewhere would be thrown away."""
    ids = [[[number, 1], [2]] if choices else [number, 1] for number in range(32)]
    mask = [[[1] * len(text) for text in row] if choices else [1, 1] for row in ids]
    whole = Batches(
        [{"input_ids": a, "attention_mask": b} for a, b in zip(ids, mask, strict=True)], tiny_tokenizer(), 2
    )
    fitted = Batches(whole.rows[:26], tiny_tokenizer(), 13)
    data = whole if rows else list(whole)
    for seed in range(3):
        training, held = hold_out(data, seed, fitted)
        found = [int(number) for batch in held for number in batch["input_ids"].flatten(1)[:, 0]]
        assert len(found) == 4
        assert min(found) >= 26
        assert len(training) == len(data) - 2
        assert len(hold_out(data, seed, whole)[1]) == 2  # where all were seen, some of these


def test_recovery_holds_out_other_rows_than_pruning_saw(monkeypatch):
    asked = []
    real = recover.hold_out
    monkeypatch.setattr(recover, "hold_out", lambda data, seed, seen: (asked.append(seen), real(data, seed, seen))[1])
    calibration = batches(count=2)
    for config in (niwaki.Structured(flops=0.6, recover_epochs=1, **CUT), MAGNITUDE):
        config = dataclasses.replace(config, recover_epochs=1)
        niwaki.prune_(tiny(), config, calibration, training_data=batches(count=9))
    assert [len(seen) for seen in asked] == [2, 2]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(asked[0], calibration, strict=True))


@pytest.mark.parametrize("asked", [niwaki.Structured(flops=0.6, **CUT), MAGNITUDE])
def test_every_step_of_pruning_has_its_share_of_recovery(asked):
    passes = []
    for epochs in (0, 3):
        config = dataclasses.replace(asked, steps=3, recover_epochs=epochs)
        result = niwaki.prune_(tiny(), config, batches(count=2), training_data=batches(count=9))
        passes.append((result.forward_passes, result.backward_passes))
    trained, looked = 3 * 8 / 2, 3 * 5 * 1 / 2
    assert passes[1] == (passes[0][0] + 2 * (trained + looked), passes[0][1] + trained)


def test_more_steps_than_batches_train_no_more_than_was_asked(monkeypatch):
    ran = []
    real = recover.distillation_loss
    monkeypatch.setattr(
        recover, "distillation_loss", lambda *args: (ran.append(torch.is_grad_enabled()), real(*args))[1]
    )
    for count, trained in ((2, 2), (9, 8)):
        ran.clear()
        config = niwaki.Structured(flops=0.6, steps=10, recover_epochs=1, **CUT)
        result = niwaki.prune_(tiny(), config, batches(count=2), training_data=batches(count=count))
        assert sum(ran) == trained
        assert result.backward_passes == trained / 2
        assert result.forward_passes == 10 + 2 * len(ran) / 2


def test_what_masks_hide_does_not_decay():
    model, data = tiny(), batches(count=4)
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.5, weight_score="magnitude", repair="none"), data)
    linears = [linear.module for linear in linears_of(model)]
    hidden = [linear.weight.detach()[~linear.mask].clone() for linear in linears]
    niwaki.finetune(model, niwaki.Finetune(full=True, epochs=2, learning_rate=1e-2), data)
    assert all(torch.equal(linear.weight[~linear.mask], value) for linear, value in zip(linears, hidden, strict=True))


@pytest.mark.parametrize("asked", [niwaki.Structured(flops=0.6), niwaki.LayerAdaptive(sparsity=0.5)])
def test_the_rate_of_recovery_is_that_of_what_is_trained(asked):
    rates = [dataclasses.replace(asked, recover_epochs=1, recover_full=full).recover_rate for full in (False, True)]
    assert rates[0] > rates[1] == niwaki.Finetune(full=True).rate
    assert dataclasses.replace(asked, recover_epochs=1, recover_learning_rate=0.5).recover_rate == 0.5
    with pytest.raises(RequestError, match="recover_full must not be given with recover_epochs 0"):
        dataclasses.replace(asked, recover_full=True)


@pytest.mark.parametrize("asked", [niwaki.Structured(flops=0.6), niwaki.LayerAdaptive(sparsity=0.5)])
def test_the_passes_of_recovery_are_counted(asked):
    passes = []
    for epochs in (0, 3):
        config = dataclasses.replace(asked, recover_epochs=epochs)
        result = niwaki.prune_(with_lora(tiny()), config, batches(count=2), training_data=batches(count=4))
        passes.append((result.forward_passes, result.backward_passes))
    assert passes[1] == (passes[0][0] + 2 * 3 * 2, passes[0][1] + 3 * 2)


@pytest.mark.parametrize(("allocation", "more"), [("uniform", (0, 0)), ("owl", (1, 0)), ("inverse-importance", (1, 1))])
def test_the_passes_of_an_allocation_of_moving_masks_are_counted(allocation, more):
    ran = Counter()

    def count(_layer, args, output):
        ran["forward"] += len(args[0])
        if output.requires_grad:
            output.register_hook(lambda _gradient: ran.update(backward=len(args[0])))

    model, calibration = tiny(), batches(2)
    layers_of(model)[0].register_forward_hook(count)
    asked = niwaki.DynamicSparsityTraining(
        sparsity=0.5, start_sparsity=0.2, reallocation="within", allocation=allocation, teacher="none", interval=1
    )
    result = niwaki.prune_(model, asked, calibration, training_data=batches(4))
    assert (result.forward_passes, result.backward_passes) == (ran["forward"] / 48, ran["backward"] / 48)
    assert (ran["forward"] - 96, ran["backward"] - 96) == (24 * more[0], 24 * more[1])


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


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_the_loss_of_recovery_is_the_sum_of_its_parts(family):
    student, teacher, batch = tiny(family, seed=1), tiny(family, seed=2), batches(family=family)[0]
    with torch.no_grad():
        both, *parts = (distillation_loss(student, teacher, batch, which) for which in RECOVER_LOSSES)
    assert float(both) == pytest.approx(sum(map(float, parts)), rel=1e-5)
    assert all(float(part) > 0 for part in parts)
    with pytest.raises(
        RequestError, match="recover_loss must be one of both, hidden-states, predictions, got 'logits'"
    ):
        niwaki.Structured(flops=0.5, recover_epochs=1, recover_loss="logits")
    with pytest.raises(RequestError, match="recover_loss must not be given with recover_epochs 0"):
        niwaki.Structured(flops=0.5, recover_loss="predictions")


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
    data = batches(count=4, rows=6, family=family)
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

    def loss(model, batch, _whole):
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


def test_a_training_in_parts_sees_every_batch():
    numbers = [{"input_ids": torch.tensor([[number]])} for number in range(6)]
    seen = []

    def loss_of(model, batch, _whole):
        seen.append(int(batch["input_ids"]))
        return model.weight.sum() * 0

    for part in range(1, 6):
        train_(torch.nn.Linear(1, 1), numbers, loss_of, epochs=2, learning_rate=1.0, seed=0, part=(part, 5))
    whole, seen = seen, []
    train_(torch.nn.Linear(1, 1), numbers, loss_of, epochs=2, learning_rate=1.0, seed=0)
    assert whole == seen
    assert sorted(seen) == sorted([*range(6), *range(6)])


def test_every_held_out_row_counts_alike():
    model, held = tiny(), batches(1, rows=12, seed=3) + batches(1, rows=1, seed=4)
    stepper = Stepper(model, [], torch.optim.SGD(model.parameters()), task_loss, rows_in, Training())
    with torch.no_grad():
        losses = torch.cat(
            [
                torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")
                for batch in held
            ]
        )
    assert stepper.loss_on(held) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_held_out_batch_of_padding_alone_has_no_loss():
    model, dense = with_lora(tiny()), tiny(seed=1)
    empty = {**batches()[0], "attention_mask": torch.zeros(12, 12, dtype=torch.long)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def loss_of(student, batch, whole):
        return distillation_loss(student, dense, batch, "hidden-states", whole)

    stepper = Stepper(model, [], optimizer, loss_of, lambda batch: int(batch["attention_mask"].sum()), Training())
    assert stepper.loss_on([empty]) == 0.0
    assert stepper.loss_on([batches()[0], empty]) == pytest.approx(stepper.loss_on([batches()[0]]))


@pytest.mark.parametrize("family", ["distilbert", "gpt2"])
def test_what_masks_leave_decays_as_all_else_does(family):
    """Of a loss without a gradient decay is all that AdamW does; `gpt2` stores its weights the other way round."""

    def nothing(model, _batch, _whole):
        return sum(p.sum() for p in model.parameters()) * 0.0

    options = Training(weight_decay=0.5, learning_rate_warmup=0.25)
    plain, masked = tiny(family, layers=1), tiny(family, layers=1)
    niwaki.prune_(masked, MAGNITUDE, batches(family=family))
    before = {linear.name: linear.module.weight.detach().clone() for linear in linears_of(masked)}
    for model in (plain, masked):
        train_(model, batches(3, family=family), nothing, options, epochs=2, learning_rate=0.1, seed=0)
    wanted = {linear.name: linear.module.weight for linear in linears_of(plain)}
    for linear in linears_of(masked):
        three = (linear.module.weight, wanted[linear.name], before[linear.name])
        weight, other, first = (to_out_in(linear.module, each) for each in three)
        keep = linear.module.mask
        assert 0 < int(keep.sum()) < keep.numel()
        assert torch.equal(weight[~keep], first[~keep])
        torch.testing.assert_close(weight[keep], other[keep], rtol=1e-6, atol=0)
        assert bool((weight[keep].abs() < 0.95 * first[keep].abs()).all())


def test_finetuning_all_weights_decays_what_masks_leave():
    found = []
    for decay in (0.0, 5.0):
        model, data = tiny(), batches(count=4)
        niwaki.prune_(model, MAGNITUDE, data)
        niwaki.finetune(model, niwaki.Finetune(full=True, learning_rate=1e-2, weight_decay=decay), data)
        found.append([float(linear.module.masked_weight.detach().abs().sum()) for linear in linears_of(model)])
    assert all(less < 0.97 * more for more, less in zip(*found, strict=True))
