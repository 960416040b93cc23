"""The controller in a loop: what it reads, what it leaves alone, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import niwaki
from niwaki.adapters import effective_weight, mask_of, masks_of, remove_masks_
from niwaki.anatomy import linears_of, sites_of, weight_of
from niwaki.masks import MaskedLinear
from niwaki.methods.dynamic import restore_controller_, save_controller
from niwaki.methods.dynamic.history import read_history, write_history
from niwaki.methods.dynamic.scores import stood_in
from niwaki.surgery import cut_
from niwaki.train.step import Stepper
from tiny import batches, logits, tiny, with_lora

OPTIONS = {"sparsity": 0.6, "interval": 2, "window": 2, "reach": 0.6, "stop": 0.9}


def start(model, steps=10, learning_rate=1e-2, data=(), **options):
    model.eval()  # no dropout
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.1)
    controller = niwaki.DynamicSparsity(**{**OPTIONS, **options}).attach(model, optimizer, steps, data=data)
    return controller, optimizer


def run(model, controller, optimizer, steps, first=0):
    data = batches(count=2, rows=6)
    for step in range(first, first + steps):
        model(**data[step % len(data)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def dense_gradients(model, data):
    """What full fine-tuning would see at the same point: each effective weight as a parameter of its own."""
    plain = copy.deepcopy(model)
    plain = niwaki.merge_(plain)
    remove_masks_(plain)
    plain.train(model.training)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    for batch in data:
        (plain(**batch).loss / len(data)).backward()
    return {linear.name: weight_of(linear.module).grad for linear in linears_of(plain)}


@pytest.mark.parametrize("kind", ["full", "lora", "frozen"])
def test_the_captured_gradient_is_that_of_full_finetuning(kind):
    model = tiny()
    if kind == "frozen":
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(False)
    elif kind != "full":
        model = with_lora(model)
    controller, _ = start(model, schedule="constant")
    batch = batches(rows=6)[0]
    model(**batch).loss.backward()
    wanted, found = dense_gradients(model, [batch]), controller.capture.take()
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-6)
        assert (gradient[~controller.masks[name]] != 0).any()


def test_under_dropout_the_gradient_is_at_the_input_that_the_pretrained_weight_sees():
    model = with_lora(tiny(), lora_dropout=0.5)
    controller, _ = start(model, schedule="constant")
    model.train()
    linear = linears_of(model)[0]
    x, dy = torch.randn(5, linear.shape[1]), torch.randn(5, linear.shape[0])
    (linear.module(x) * dy).sum().backward()
    torch.testing.assert_close(controller.capture.sums[linear.name], dy.T @ x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradient(reentrant):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        inner = torch.nn.Linear(6, 6)
        linear = niwaki.masks.mask_linear_(inner, torch.rand(6, 6) < 0.5)
        seen = []
        linear.watch = seen.append
        x = torch.randn(5, 6, requires_grad=True)
        if checkpointed:
            y = checkpoint(lambda x, linear=linear: F.relu(linear(x)), x, use_reentrant=reentrant)
        else:
            y = F.relu(linear(x))
        y.square().sum().backward()
        assert len(seen) == 1
        found.append(seen[0])
    torch.testing.assert_close(found[0], found[1])


def test_micro_batches_are_one_batch():
    halves = [{k: v[part] for k, v in batches(rows=6)[0].items()} for part in (slice(0, 3), slice(3, 6))]
    found = []
    for data in ([batches(rows=6)[0]], halves):
        model = with_lora(tiny()).double()
        controller, optimizer = start(model, schedule="constant", grow="gradient", interval=1, window=1)
        for _ in range(3):
            for batch in data:
                (model(**batch).loss / len(data)).backward()
            optimizer.step()
            optimizer.zero_grad()
            controller.step()
        found.append((controller, model))
    (one, model), (two, other) = found
    assert all(torch.equal(mask, two.masks[name]) for name, mask in one.masks.items())
    assert any(row.grown for row in one.history)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_micro_batches_of_accelerate_are_one_batch(monkeypatch):
    for state in (PartialState, AcceleratorState, GradientState):  # one of each a process: those of this test only
        monkeypatch.setattr(state, "_shared_state", {})
    whole = batches(rows=6)[0]
    halves = [{k: v[part] for k, v in whole.items()} for part in (slice(0, 3), slice(3, 6))]
    found = []
    for data in ([whole], halves):
        model = with_lora(tiny()).double().eval()  # no dropout
        adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(data))
        prepared, optimizer = accelerator.prepare(model, adam)
        options = {"sparsity": 0.6, "schedule": "constant", "grow": "gradient", "interval": 1, "window": 1}
        controller = niwaki.DynamicSparsity(**options).attach(model, optimizer, 3)
        for batch in data * 3:
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(**batch).loss)
                optimizer.step()
                controller.step()
                optimizer.zero_grad()
        assert controller.done == 3
        found.append(controller)
    assert all(torch.equal(mask, found[1].masks[name]) for name, mask in found[0].masks.items())
    assert any(row.grown for row in found[0].history)


def test_a_step_that_the_scaler_skips_changes_nothing():
    model = with_lora(tiny())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    options = {**OPTIONS, "interval": 1, "window": 1, "schedule": "constant", "grow": "gradient"}
    controller = niwaki.DynamicSparsity(**options).attach(model, optimizer, 10, scaler=scaler)
    plain = with_lora(tiny())
    adam = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 1e-3)
    other = niwaki.DynamicSparsity(**options).attach(plain, adam, 10)
    for step, batch in enumerate(itertools.chain(batches(count=4, rows=6), batches(4, seed=3))):
        scaler.scale(model(**batch).loss).backward()
        skipped = step in (1, 4)
        if skipped:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        before = [mask.clone() for mask in controller.masks.values()], controller.done, len(controller.history)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        rows = controller.step()
        if skipped:
            assert not rows
            assert all(torch.equal(a, b) for a, b in zip(before[0], controller.masks.values(), strict=True))
            assert before[1:] == (controller.done, len(controller.history))
        else:
            plain(**batch).loss.backward()
            adam.step()
            adam.zero_grad()
            other.step()
            assert all(torch.equal(mask, other.masks[name]) for name, mask in controller.masks.items())
    assert controller.done == 6


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("stopped", [3, 6])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grow": "momentum"},
        {"schedule": "constant"},
        {"grow": "random", "drop": "magnitude", "window": 10},
        {"reallocation": "within", "allocation": "global"},
        {"reallocation": "within", "allocation": "owl"},
    ],
    ids=str,
)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, lora, stopped, options):
    def build():
        return with_lora(tiny()) if lora else tiny()

    torch.manual_seed(7)
    options = {**options, "data": batches(count=2) if options.get("allocation") == "owl" else ()}
    whole = build()
    controller, optimizer = start(whole, **options)
    run(whole, controller, optimizer, 10)
    half = build()
    first, adam = start(half, **options)
    run(half, first, adam, stopped)
    save_controller(first, tmp_path)
    weights, moments = copy.deepcopy(half.state_dict()), copy.deepcopy(adam.state_dict())
    again = build()
    if lora:  # as PEFT saves: the adapter and the task head, onto the pretrained base
        weights = {name: value for name, value in weights.items() if "lora_" in name or "modules_to_save" in name}
    again.load_state_dict(weights, strict=not lora)
    second, adam = start(again, **options)
    adam.load_state_dict(moments)
    restore_controller_(second, tmp_path)
    run(again, second, adam, 10 - stopped, first=stopped)
    assert second.history == controller.history
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(mask, second.masks[name]) for name, mask in controller.masks.items())


def test_a_checkpoint_of_another_request_is_refused(tmp_path):
    model = with_lora(tiny())
    save_controller(start(model)[0], tmp_path)
    for options, words in (
        ({"sparsity": 0.5}, r"sparsity must be 0\.6 as in the checkpoint, got 0\.5"),
        ({"steps": 20}, "must have 10 steps as in the checkpoint, got 20"),
    ):
        controller, _ = start(with_lora(tiny()), **options)
        with pytest.raises(niwaki.RequestError, match=words):
            restore_controller_(controller, tmp_path)
    with pytest.raises(niwaki.RequestError, match=r"checkpoint must hold dynamic\.safetensors"):
        restore_controller_(controller, tmp_path / "nowhere")


@pytest.mark.parametrize("lora", [True, False])
def test_finished_it_is_an_ordinary_masked_model(tmp_path, lora):
    model = with_lora(tiny()) if lora else tiny()
    controller, optimizer = start(model)
    run(model, controller, optimizer, 10)
    controller.finish()
    model.eval()
    batch, masks = batches(rows=6)[0], masks_of(model)
    assert controller.zeros == round(0.6 * controller.total)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(m.watch is None and m.mover is None for m in model.modules() if isinstance(m, MaskedLinear))
    before = logits(model, batch)
    merged = niwaki.merge_(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged, batch), before, rtol=0, atol=1e-5)
    for linear in linears_of(merged):
        assert (effective_weight(linear.module)[~masks[linear.name]] == 0).all()
    for compact in (False, True):
        niwaki.save(model, tmp_path / str(compact), compact=compact)
        loaded = niwaki.load(tmp_path / str(compact))
        assert torch.equal(logits(loaded, batch), logits(merged, batch))
        assert all(torch.equal(mask, masks[name]) for name, mask in masks_of(loaded).items())
    plain = type(niwaki.load(tmp_path / "False")).from_pretrained(tmp_path / "False")
    assert torch.equal(logits(plain.eval(), batch), logits(merged, batch))
    zeros = sum(int((weight_of(linear.module) == 0).sum()) for linear in linears_of(plain))
    assert zeros == controller.zeros
    niwaki.prune_(model, niwaki.Structured(flops=0.7, repair="none"), batches(count=2, rows=6))


@pytest.mark.parametrize("lora", [True, False])
def test_sparsity_zero_is_the_plain_training(lora):
    found = []
    for moving in (True, False):
        model = (with_lora(tiny()) if lora else tiny()).train()
        torch.manual_seed(3)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=0.1)
        controller = (
            niwaki.DynamicSparsity(**{**OPTIONS, "sparsity": 0.0}).attach(model, optimizer, 8) if moving else None
        )
        for batch in batches(count=2, rows=6) * 2:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if controller:
                controller.step()
        found.append(model.state_dict())
    for a, b in zip(found[0].values(), found[1].values(), strict=True):
        # (W + s B A) x and W x + s B (A x) round differently.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4) if lora else torch.testing.assert_close(
            a, b, rtol=0, atol=0
        )


def test_a_training_that_ends_early_is_brought_to_the_target_with_a_warning():
    model = with_lora(tiny())
    controller, optimizer = start(model)
    run(model, controller, optimizer, 3)
    missing = round(0.6 * controller.total) - controller.zeros
    with pytest.warns(UserWarning, match=rf"ended at step 3 of 10.*{missing} weights were dropped untrained"):
        controller.finish()
    assert controller.zeros == round(0.6 * controller.total)


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_one_that_ends_early_within_linears_has_the_shares_of_its_allocation(pattern):
    found = []
    for steps in (3, 10):
        model = tiny()
        controller, optimizer = start(model, reallocation="within", allocation="erk", pattern=pattern)
        run(model, controller, optimizer, steps)
        with pytest.warns(UserWarning, match="dropped untrained") if steps == 3 else nullcontext():
            controller.finish()
        found.append({name: int(mask.sum()) for name, mask in controller.masks.items()})
    assert found[0] == found[1]


def test_what_is_dropped_at_the_end_is_part_of_the_update_at_its_step():
    model = with_lora(tiny())
    controller, optimizer = start(model, interval=3, window=1)
    run(model, controller, optimizer, 3)
    updated = {row.linear: row for row in controller.history}
    assert {row.step for row in updated.values()} == {3}
    with pytest.warns(UserWarning, match="dropped untrained"):
        controller.finish()
    assert [row.linear for row in controller.history] == list(updated)
    found = controller.summary(3)
    assert found["mask/sparsity"] == pytest.approx(0.6, abs=1e-3)
    before = sum(mask.numel() - int(mask.sum()) for mask in controller.first.values())
    gone = sum(row.dropped - row.grown for row in controller.history)
    assert gone == controller.zeros - before
    assert all(row.dropped >= updated[row.linear].dropped for row in controller.history)


def test_steps_that_are_skipped_at_the_end_are_told_of(monkeypatch):
    real = Stepper._optimizer_step
    monkeypatch.setattr(Stepper, "_optimizer_step", lambda self, step: step <= 5 and real(self, step))
    config = niwaki.DynamicSparsityTraining(sparsity=0.6, epochs=2, interval=1, window=1, reach=1, stop=1)
    model = tiny().train()
    done = niwaki.prune_(model, config, batches(5))
    assert not model.training
    assert done.achieved == pytest.approx(0.6, abs=1e-3)
    assert [warning for warning in done.warnings if "ended at step 5 of 10" in warning] == list(done.warnings) != []
    assert max(each["sparsity"] for each in done.details["course"]) == pytest.approx(0.6, abs=1e-3)


def test_a_start_is_refused_where_masks_are_held_that_are_the_start():
    model = tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.4, weight_score="magnitude", repair="none"), batches(2))
    config = niwaki.DynamicSparsityTraining(sparsity=0.6, start_sparsity=0.1, interval=1, epochs=2)
    with pytest.raises(niwaki.RequestError, match=r"start_sparsity must be left out .* 0\.4000, got 0\.1"):
        niwaki.prune_(model, config, batches(5))


@pytest.mark.parametrize("grow", ["saliency", "shuffled"])
@pytest.mark.parametrize("held", [True, False])
def test_weights_without_a_value_to_return_with_return(held, grow):
    model = tiny()
    if held:
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.6, weight_score="magnitude", repair="none"), batches())
        for linear in linears_of(model):  # as a saved one is loaded
            weight_of(linear.module).data.mul_(mask_of(linear.module))
    controller, optimizer = start(model, schedule="constant", grow=grow, returns="value" if held else "zero")
    run(model, controller, optimizer, 10)
    new = sum(int((mask & ~controller.first[name]).sum()) for name, mask in controller.masks.items())
    assert new > 0.01 * controller.total


def test_what_stands_for_a_value_is_the_mean_of_the_active_and_only_where_there_is_none():
    weight, mask = torch.tensor([[0.5, -1.5, 3.0, 0.0, 0.0]]), torch.tensor([[True, True, False, False, True]])
    assert stood_in(weight, mask).tolist() == [[0.5, -1.5, 3.0, pytest.approx(2 / 3), 0.0]]
    assert stood_in(weight, mask & False).tolist() == weight.tolist()
    controller, _ = start(tiny(), schedule="constant")
    for name in controller.linears:
        assert torch.equal(controller.scored(name), controller.dense(name))


def test_an_allocation_is_refused_where_masks_are_held_and_weights_go_anywhere():
    model = tiny()
    start(model, schedule="constant", allocation="erk")[0].detach()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.6, weight_score="magnitude", repair="none"), batches())
    for options in ({"reallocation": "within", "allocation": "erk"}, {"allocation": "uniform"}):
        start(model, schedule="constant", **options)[0].detach()
    before = masks_of(model)
    with pytest.raises(niwaki.RequestError, match=r"allocation must be left out.*across.*holds masks.*got 'erk'"):
        start(model, schedule="constant", allocation="erk")
    assert all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())


@pytest.mark.parametrize("returns", ["value", "zero"])
def test_what_a_trained_weight_returns_with(returns):
    model = tiny()
    grow = "gradient" if returns == "zero" else "random"
    controller, optimizer = start(model, schedule="constant", returns=returns, grow=grow, interval=3, window=1)
    had = {linear.name: weight_of(linear.module).detach().clone() for linear in linears_of(tiny())}
    run(model, controller, optimizer, 3)
    grown = 0
    for linear in linears_of(model):
        weight, new = weight_of(linear.module), controller.newest[linear.name]
        assert (weight[~controller.masks[linear.name]] == 0).all()
        expected = had[linear.name][new] if returns == "value" else torch.zeros(int(new.sum()))
        assert torch.equal(weight[new], expected)
        grown += int(new.sum())
    assert grown > 0


def test_lora_gives_the_pretrained_value_back():
    model = with_lora(tiny())
    controller, optimizer = start(model, schedule="constant")
    run(model, controller, optimizer, 10)
    controller.finish()
    for linear in linears_of(model):
        mask = controller.masks[linear.name]
        dense = weight_of(linear.module) + niwaki.adapters.dense_weight(linear.module) - weight_of(linear.module)
        torch.testing.assert_close(effective_weight(linear.module)[mask], dense[mask])


def test_a_checkpoint_of_the_adapter_loads_with_its_masks(tmp_path):
    base, model = tiny(), with_lora(tiny())
    base.save_pretrained(tmp_path / "base")
    controller, optimizer = start(model)
    run(model, controller, optimizer, 10)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    save_controller(controller, tmp_path / "adapter")
    controller.finish()
    loaded = niwaki.load(tmp_path / "adapter")
    batch = batches(rows=6)[0]
    torch.testing.assert_close(logits(loaded, batch), logits(model.eval(), batch))
    assert all(torch.equal(mask, controller.masks[name]) for name, mask in masks_of(loaded).items())


@pytest.mark.parametrize("part", ["gradient", "weight"])
def test_what_is_not_finite_names_the_linear(part):
    model = with_lora(tiny())
    controller, optimizer = start(model, interval=1, window=1, drop="magnitude", grow="gradient")
    model(**batches(rows=6)[0]).loss.backward()
    if part == "gradient":
        controller.capture.sums["layer.1.up"][0, 0] = torch.nan
        with pytest.raises(niwaki.WorkError, match=r"layer\.1\.up.*gradient.*not finite"):
            optimizer.step()
    else:
        with torch.no_grad():
            weight_of(linears_of(model)[10].module)[0, 0] = torch.nan
        optimizer.step()
        with pytest.raises(niwaki.WorkError, match=r"layer\.1\.up: a weight score is NaN at step 1"):
            controller.step()


def test_bfloat16_counts_are_exact():
    model = tiny().bfloat16()
    controller, optimizer = start(model, grow="gradient", drop="magnitude")
    for _ in range(10):
        model(**batches(rows=6)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        assert controller.zeros == controller.scheduled(controller.done)


def test_wrong_models_and_optimizers_are_refused_before_anything_changes():
    plain = tiny()
    optimizer = torch.optim.AdamW(plain.parameters())
    late = with_lora(plain)
    with pytest.raises(niwaki.RequestError, match=r"optimizer must hold.*after the adapter.*layer\.0\.query\.lora_A"):
        niwaki.DynamicSparsity(**OPTIONS).attach(late, optimizer, 10)
    with pytest.raises(niwaki.RequestError, match="PreTrainedModel"):
        niwaki.DynamicSparsity(**OPTIONS).attach(torch.nn.Linear(2, 2), optimizer, 10)
    with pytest.raises(niwaki.RequestError, match=r"at least \d+ steps are needed, got 1"):
        start(with_lora(tiny()), steps=1)
    with pytest.raises(niwaki.RequestError, match=r"pattern 3x1 must divide.*layer\.0\.query"):
        start(with_lora(tiny()), pattern="3x1")
    assert not masks_of(late)
    empty = tiny()
    cut_(empty, {site.name: torch.arange(0) for site in sites_of(empty)})
    with pytest.raises(niwaki.RequestError, match="looked for query, key, value, output, up, down, found none"):
        start(empty)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.8), batches()),
        lambda model: niwaki.prune_(model, niwaki.Structured(flops=0.5), batches()),
        lambda model: niwaki.apply_(model, niwaki.plan(model, niwaki.Structured(flops=0.5), batches())),
        remove_masks_,
    ],
)
def test_nothing_is_taken_from_under_a_training(verb):
    model = tiny()
    controller, optimizer = start(model)
    run(model, controller, optimizer, 5)
    before = copy.deepcopy(model).state_dict()
    with pytest.raises(niwaki.RequestError, match=r"finish or detach of its controller first\), got one that moves"):
        verb(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    run(model, controller, optimizer, 5, first=5)
    controller.finish()
    verb(model)


def test_the_history_reads_back_and_sums_up(tmp_path):
    model = with_lora(tiny())
    controller, optimizer = start(model)
    run(model, controller, optimizer, 10)
    write_history(controller.history, tmp_path / "history.jsonl")
    assert read_history(tmp_path / "history.jsonl") == controller.history
    steps = sorted({row.step for row in controller.history})
    assert steps == list(controller.schedule.updates)
    last = controller.summary(steps[-1])
    assert last["mask/sparsity"] == pytest.approx(0.6, abs=1e-4)
    # From a dense first mask the distance is the sparsity, and all that grows had been active before.
    assert last["mask/distance"] == pytest.approx(0.6, abs=1e-4)
    assert last["mask/regrown"] == last["mask/grown"]
    assert all(row.survival is None or 0 <= row.survival <= 1 for row in controller.history)


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from niwaki.methods.dynamic import write_training

    model = with_lora(tiny())
    controller, optimizer = start(model)
    run(model, controller, optimizer, 10)
    write_training(controller.schedule, controller.history, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "dynamic.jsonl", "dynamic-schedule.png", "dynamic-history.png",
    }  # fmt: skip


@pytest.mark.parametrize("spared", [{"only": "ffn"}, {"keep_layers": (0,)}])
def test_the_sparsity_that_is_logged_is_that_of_all_linears(spared):
    model = tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.2, weight_score="magnitude", repair="none"), batches())
    callback = niwaki.DynamicSparsity(**{**OPTIONS, "sparsity": 0.5, **spared})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    controller = callback.attach(model, optimizer, 10)
    run(model, controller, optimizer, 10)
    logs, state = {}, SimpleNamespace(log_history=[{}])
    callback.controller = controller
    callback.on_log(None, state, None, logs=logs)
    assert logs["mask/sparsity"] == pytest.approx(controller.zeros / controller.total, abs=1e-9)
    assert logs["mask/sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert state.log_history == [logs]
