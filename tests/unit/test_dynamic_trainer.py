"""`DynamicSparsity` in a Trainer: one line that keeps every promise of the controller, checkpoints included."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import niwaki
from niwaki.adapters import masks_of
from niwaki.anatomy import linears_of, weight_of
from niwaki.masks import MaskedLinear
from niwaki.methods.dynamic.callback import DynamicSparsity, schedule_table
from tiny import batches, logits, tiny, with_lora

OPTIONS = {"sparsity": 0.6, "interval": 2, "window": 2, "reach": 0.5, "stop": 0.8, "quiet": True}
ROWS = [{key: value[i] for key, value in batch.items()} for batch in batches(count=8, rows=4) for i in range(4)]


def trainer(model, out, callback=None, callbacks=(), **options):
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **options}
    arguments = TrainingArguments(
        str(out), use_cpu=True, disable_tqdm=True, seed=0, weight_decay=0.1, dataloader_pin_memory=False,
        **{"report_to": "none", **options},
    )  # fmt: skip
    given = [*([callback] if callback else []), *callbacks]
    return Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:8], callbacks=given)


class Watcher(TrainerCallback):
    """Looks after every step; stops where it is told to."""

    def __init__(self, callback, stop_at=0):
        self.callback, self.stop_at, self.steps, self.logs = callback, stop_at, 0, []

    def on_step_end(self, args, state, control, **objects):
        controller = self.callback.controller
        assert controller.done == state.global_step
        assert controller.zeros == controller.scheduled(state.global_step)
        self.steps += 1
        if self.stop_at and state.global_step == self.stop_at:
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **objects):
        self.logs.append(dict(logs or {}))


def test_tensorboard_shows_what_updates_did(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    callback = DynamicSparsity(**OPTIONS)
    run = trainer(tiny(), tmp_path, callback, report_to="tensorboard")
    callback.log_through(run)
    run.train()
    (logs,) = (tmp_path / "runs").iterdir()
    events = reader.EventAccumulator(str(logs))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/mask/sparsity")}
    updates = callback.controller.schedule.updates
    assert list(shown) == list(updates)
    assert shown[updates[-1]] == pytest.approx(0.6, abs=1e-4)
    assert {"train/mask/dropped", "train/mask/grown"} <= {*events.Tags()["scalars"]}


@pytest.mark.parametrize("lora", [True, False])
def test_one_line_in_a_trainer(tmp_path, lora):
    model = with_lora(tiny()) if lora else tiny()
    callback = DynamicSparsity(**OPTIONS)
    watcher = Watcher(callback)
    run = trainer(model, tmp_path, callback, [watcher], gradient_accumulation_steps=2)
    callback.log_through(run)
    run.train()
    controller = callback.controller
    assert watcher.steps == run.state.max_steps == 8
    assert controller.zeros == round(0.6 * controller.total)
    assert all(m.watch is None and m.mover is None for m in model.modules() if isinstance(m, MaskedLinear))
    assert len(watcher.logs) > len(controller.schedule.updates)
    for logs in (watcher.logs, run.state.log_history):
        assert [log["mask/sparsity"] for log in logs if "mask/sparsity" in log][-1] == pytest.approx(0.6, abs=1e-4)
    lines = (tmp_path / "dynamic.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == set(controller.schedule.updates)
    batch, masks = batches()[0], masks_of(model)
    if lora:
        before = logits(model.eval(), batch)
        torch.testing.assert_close(logits(niwaki.merge_(model), batch), before, rtol=0, atol=1e-5)
    else:  # what the Trainer saves is an ordinary model with the zeros in it
        run.save_model(str(tmp_path / "saved"))
        plain = type(model).from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(logits(plain, batch), logits(model.eval(), batch))
        for linear in linears_of(plain):
            assert torch.equal(weight_of(linear.module) == 0, ~masks[linear.name])


@pytest.mark.parametrize("lora", [True, False])
def test_resumed_from_a_checkpoint_it_goes_on_bit_for_bit(tmp_path, lora):
    def make(place, callback, callbacks=()):
        model = with_lora(tiny()) if lora else tiny()
        options = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 2}
        return trainer(model, place, callback, callbacks, num_train_epochs=3, **options)

    whole, first, second = (DynamicSparsity(**OPTIONS) for _ in range(3))
    uninterrupted = make(tmp_path / "whole", whole)
    uninterrupted.train()
    with pytest.warns(UserWarning, match="dropped untrained"):
        make(tmp_path / "half", first, [Watcher(first, stop_at=5)]).train()
    resumed = make(tmp_path / "half", second)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-5"))
    assert second.controller.history == whole.controller.history
    for (name, a), b in zip(uninterrupted.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name, mask in whole.controller.masks.items():
        assert torch.equal(mask, second.controller.masks[name])
    # A checkpoint that was moved has to be named; one without the masks is refused.
    shutil.move(tmp_path / "half" / "checkpoint-5", tmp_path / "moved")
    lost = make(tmp_path / "half", DynamicSparsity(**OPTIONS))
    with pytest.raises(niwaki.RequestError, match=r"resume_from must be given.*checkpoint-5"):
        lost.train(resume_from_checkpoint=str(tmp_path / "moved"))
    named = DynamicSparsity(**OPTIONS, resume_from=tmp_path / "moved")
    make(tmp_path / "half", named).train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert named.controller.history == whole.controller.history


@pytest.mark.parametrize("lora", [True, False])
def test_the_best_model_has_reached_the_target(tmp_path, lora):
    class Falling(TrainerCallback):
        """The metric is best at the first evaluation, when the model is still dense."""

        def on_evaluate(self, args, state, control, metrics=None, **objects):
            metrics["eval_loss"] = float(state.global_step)

    callback = DynamicSparsity(**OPTIONS)
    run = trainer(
        with_lora(tiny()) if lora else tiny(), tmp_path, callback, [Falling()],
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
    )  # fmt: skip
    run.train()
    last = callback.controller.schedule.last
    assert run.state.best_global_step == last
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{last}")
    assert callback.controller.zeros == round(0.6 * callback.controller.total)
    for linear in linears_of(run.model):
        mask = callback.controller.masks[linear.name]
        assert (niwaki.adapters.effective_weight(linear.module)[~mask] == 0).all()


def test_early_stopping_waits_for_the_target(tmp_path):
    callback = DynamicSparsity(**OPTIONS)
    run = trainer(
        with_lora(tiny()), tmp_path, callback, [EarlyStoppingCallback(1, early_stopping_threshold=1e9)],
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=False,
    )  # fmt: skip
    run.train()
    assert callback.controller.schedule.last <= run.state.global_step < run.state.max_steps


def test_sparsity_zero_is_the_plain_trainer(tmp_path):
    found = []
    for callback in (DynamicSparsity(**{**OPTIONS, "sparsity": 0.0}), None):
        run = trainer(tiny(), tmp_path, callback)
        run.train()
        found.append(run.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_gradient_checkpointing_changes_nothing(tmp_path):
    found = []
    for checkpointing in (False, True):
        model = tiny()
        callback = DynamicSparsity(**OPTIONS)
        run = trainer(model, tmp_path, callback, activation_checkpointing=checkpointing, num_train_epochs=1)
        run.train()
        found.append(callback.controller.masks)
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


def test_an_allocation_that_looks_at_data_leaves_the_order_of_training_alone(tmp_path):
    found = []
    for allocation in ("uniform", "inverse-importance"):
        seen = []
        options = {**OPTIONS, "sparsity": 0.5, "max_sparsity": 1.0, "allocation": allocation, "reallocation": "within"}
        run = trainer(tiny(), tmp_path, DynamicSparsity(**options), num_train_epochs=1)
        collate = run.data_collator
        run.data_collator = lambda rows, collate=collate, seen=seen: seen.append(len(rows)) or collate(rows)
        run.train()
        found.append(float(torch.rand(())))
    assert found[0] == found[1]


def test_bfloat16_autocast(tmp_path):
    callback = DynamicSparsity(**OPTIONS)
    run = trainer(with_lora(tiny()), tmp_path, callback, [Watcher(callback)], bf16=True)
    run.train()
    assert callback.controller.zeros == round(0.6 * callback.controller.total)


def test_a_training_too_short_is_refused_before_it_starts(tmp_path):
    model = with_lora(tiny())
    run = trainer(model, tmp_path, DynamicSparsity(sparsity=0.8, interval=100, quiet=True))
    with pytest.raises(niwaki.RequestError, match=r"at least \d+ steps are needed, got 16"):
        run.train()
    assert not masks_of(model)
    run = trainer(model, tmp_path, DynamicSparsity(**OPTIONS), fsdp=None)
    run.train()


def test_the_schedule_is_printed(tmp_path, capsys):
    callback = DynamicSparsity(**{**OPTIONS, "quiet": False})
    trainer(with_lora(tiny()), tmp_path, callback, num_train_epochs=1).train()
    said = capsys.readouterr().err
    assert "updates in 8 steps" in said
    assert "0.6000" in [*schedule_table(callback.controller.schedule).columns[1].cells]
    assert "AdamW: moments of dropped weights are cleared" in said
