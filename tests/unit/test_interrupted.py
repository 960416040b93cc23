"""What cannot be trained is refused before anything changes; what fails or is interrupted is put back."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from test_dynamic_trainer import OPTIONS, trainer
from transformers import TrainerCallback

import niwaki
from niwaki.adapters import masks_of
from niwaki.train import recover
from niwaki.train.loop import task_loss
from tiny import batches, logits, tiny, with_lora

DYNAMIC = {"sparsity": 0.6, "interval": 1, "window": 1, "reach": 0.5, "stop": 0.9}
UNIFORM = {"allocation": "uniform", "weight_score": "magnitude", "repair": "none"}


def state(model):
    """All that a call could leave behind in a model."""
    hooks = {
        name: [len(value) for key, value in sorted(vars(part).items()) if key.endswith("_hooks")]
        for name, part in model.named_modules()
    }
    return {
        "types": {name: type(part) for name, part in model.named_modules()},
        "modes": {name: part.training for name, part in model.named_modules()},
        "attributes": {name: sorted(vars(part)) for name, part in model.named_modules()},
        "hooks": hooks,
        "required": {name: (id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()},
        "cache": model.config.use_cache if hasattr(model.config, "use_cache") else None,
        "tensors": {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]},
    }


def assert_same(after, before):
    for key, value in before.items():
        if key == "tensors":
            assert after[key].keys() == value.keys()
            assert all(torch.equal(tensor, after[key][name]) for name, tensor in value.items())
        else:
            assert after[key] == value, key


def breaking(loss, error, at=2):
    """The loss, which raises at step `at`."""
    calls = []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == at:
            raise error
        return loss(*args, **options)

    return broken


def masked(lora):
    model = with_lora(tiny()) if lora else tiny()
    niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=0.3, **UNIFORM), batches(count=1, rows=6))
    return model


MODELS = {
    "plain": tiny,
    "training mode": lambda: tiny().train(),
    "llama": lambda: tiny("llama"),
    "adapter": lambda: with_lora(tiny(), modules_to_save=["classifier"]),
    "masked": lambda: masked(False),
    "masked adapter": lambda: masked(True),
}
WORK = {
    "niwaki.methods.finetune.task_loss, full": niwaki.Finetune(full=True),
    "niwaki.methods.finetune.task_loss": niwaki.Finetune(lora_rank=4),
    "niwaki.methods.dynamic.stage.task_loss": niwaki.DynamicSparsityTraining(**DYNAMIC, teacher="none", lora_rank=4),
    "niwaki.methods.dynamic.stage.distillation_loss": niwaki.DynamicSparsityTraining(**DYNAMIC, lora_rank=4),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", WORK)
def test_an_interrupted_training_leaves_the_model_as_it_came_in(monkeypatch, model, loss):
    data = batches(count=2, rows=6, family="llama" if model == "llama" else "distilbert")
    made, config = MODELS[model](), WORK[loss]
    if isinstance(config, niwaki.Finetune) and config.full and "adapter" in model:
        pytest.skip("of a model without an adapter")
    loss = loss.partition(",")[0]
    for parameter in list(made.parameters())[::3]:
        parameter.requires_grad_(False)
    before, known = state(made), logits(made.eval(), data[0])
    made.train(before["modes"][""])
    before = state(made)
    place, _, name = loss.rpartition(".")
    real = getattr(__import__(place, fromlist=[name]), name)
    verb = niwaki.finetune if isinstance(config, niwaki.Finetune) else niwaki.prune_
    for error in (KeyboardInterrupt(), torch.OutOfMemoryError("full")):
        monkeypatch.setattr(loss, breaking(real, error))
        with pytest.raises(type(error)):
            verb(made, config, data)
        assert_same(state(made), before)
    monkeypatch.setattr(loss, real)
    assert torch.equal(logits(made.eval(), data[0]), known)
    verb(made, config, data)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "config", [niwaki.Structured(flops=0.6, repair="none"), niwaki.LayerAdaptive(sparsity=0.5, **UNIFORM)], ids=type
)
def test_an_interrupted_recovery_leaves_the_model_pruned_without_it(monkeypatch, lora, full, config):
    plain, broken = (with_lora(tiny()) if lora else tiny() for _ in range(2))
    niwaki.prune_(plain, config, batches(count=2, rows=6))
    monkeypatch.setattr(
        "niwaki.train.recover.distillation_loss", breaking(recover.distillation_loss, KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        niwaki.prune_(
            broken, dataclasses.replace(config, recover_epochs=1, recover_full=full), batches(count=2, rows=6)
        )
    after, before = state(broken), state(plain)
    after["required"], before["required"] = ({k: v[1:] for k, v in s["required"].items()} for s in (after, before))
    assert_same(after, before)


def merged():
    model = with_lora(tiny())
    model.merge_adapter()
    return model


def switched_off():
    model = with_lora(tiny())
    model.base_model.disable_adapter_layers()
    return model


def rounded():
    model = with_lora(tiny())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: tiny().to(torch.bfloat16), r"dtype must be float32 to train .*classifier.*, got bfloat16"),
        (rounded, r"dtype must be float32 to train .*lora_A.*, got bfloat16"),
        (merged, "adapter must be unmerged to be trained, got default merged"),
        (switched_off, "adapter must be on to be trained, got default off"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_changes(made, words):
    model = made()
    before = state(model)
    for config in (
        niwaki.Structured(flops=0.6, recover_epochs=1),
        niwaki.LayerAdaptive(sparsity=0.5, recover_epochs=1),
        niwaki.DynamicSparsityTraining(**DYNAMIC),
    ):
        with pytest.raises(niwaki.RequestError, match=words):
            niwaki.prune_(model, config, batches(count=2, rows=6))
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.finetune(model, niwaki.Finetune(), batches(count=2, rows=6))
    assert_same(state(model), before)


def test_weights_that_cannot_be_trained_are_refused_before_anything_changes():
    model = with_lora(tiny())
    model.base_model.model.distilbert.to(torch.bfloat16)
    before = state(model)
    for config in (
        niwaki.Structured(flops=0.6, recover_epochs=1, recover_full=True),
        niwaki.LayerAdaptive(sparsity=0.5, recover_epochs=1, recover_full=True),
    ):
        with pytest.raises(niwaki.RequestError, match=r"dtype must be float32 to train .*lin.*, got bfloat16"):
            niwaki.prune_(model, config, batches(count=2, rows=6))
    assert_same(state(model), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": 1000}, "steps are needed, got 8"),
        ({"pattern": "3x1"}, "pattern 3x1 must divide"),
        ({"sparsity": 0.2}, "sparsity must be at least the 0.3000 the model holds, got 0.2"),
        ({"lora_rank": 5}, r"lora_rank must be left out .* \(of rank 4\), got 5"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused_before_anything_changes(options, words):
    model = masked(True)
    before = state(model)
    with pytest.raises(niwaki.RequestError, match=words):
        niwaki.prune_(model, niwaki.DynamicSparsityTraining(**{**DYNAMIC, **options}), batches(count=4, rows=6))
    assert_same(state(model), before)


def own_loop(model, steps, options=DYNAMIC):
    """A training of one's own, `steps` of 10."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    controller = niwaki.DynamicSparsity(**options).attach(model, optimizer, 10)
    for batch in (batches(count=2, rows=6) * 3)[:steps]:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    return controller, optimizer


@pytest.mark.parametrize("returns", ["value", "zero"])
@pytest.mark.parametrize("model", ["plain", "masked", "adapter", "masked adapter"])
def test_a_controller_that_is_detached_puts_masks_and_values_back(model, returns):
    made = MODELS[model]()
    options = {**DYNAMIC, "returns": "value" if "adapter" in model else returns}
    before = state(made)
    controller, optimizer = own_loop(made, 0, options)
    controller.detach()
    assert_same(state(made), before)
    controller, optimizer = own_loop(made, 4, options)
    controller.detach()
    controller.detach()
    after = state(made)
    assert {key: after[key] for key in ("types", "hooks", "attributes")} == {
        key: before[key] for key in ("types", "hooks", "attributes")
    }
    assert not optimizer._optimizer_step_pre_hooks
    if options["returns"] == "value":
        assert all((value != 0).all() for name, value in made.named_parameters() if name.endswith("lin1.weight"))
    with pytest.raises(niwaki.RequestError, match="last one attached to its model, got one that was detached"):
        controller.step()
    with pytest.raises(niwaki.RequestError, match="detached"):
        controller.finish()


@pytest.mark.parametrize("lora", [True, False])
def test_a_later_controller_takes_a_model_over_from_a_training_that_died(lora):
    model = with_lora(tiny()) if lora else tiny()
    first, _ = own_loop(model, 4)
    second, _ = own_loop(model, 10)
    assert first.state == "detached"
    second.finish()
    assert second.zeros == round(0.6 * second.total)
    with pytest.raises(niwaki.RequestError, match="detached"):
        first.step()


def test_an_attach_that_is_refused_leaves_the_controller_that_is_there():
    model = tiny()
    first, optimizer = own_loop(model, 4)
    masks = {name: mask.clone() for name, mask in first.masks.items()}
    with pytest.raises(niwaki.RequestError, match="pattern 3x1 must divide"):
        niwaki.DynamicSparsity(**DYNAMIC, pattern="3x1").attach(model, optimizer, 10)
    assert all(torch.equal(mask, masks[name]) for name, mask in first.masks.items())
    first.step()


def test_a_copy_of_a_moving_model_is_moved_and_watched_by_nobody():
    model = with_lora(tiny())
    controller, _ = own_loop(model, 4)
    other = copy.deepcopy(model)
    controller.arm()
    controller.capture.arm(True)
    another = copy.deepcopy(model)
    another(**batches(rows=6)[0]).loss.backward()
    assert not controller.capture.sums
    second, _ = own_loop(other, 10)
    assert controller.state == second.state == "attached"
    assert all(torch.equal(mask, masks_of(model)[name]) for name, mask in controller.masks.items())


class Dying(TrainerCallback):
    """Raises after some steps, as a training that dies does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args, state, control, **objects):
        if state.global_step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_a_training_by_the_trainer_that_died_can_be_started_again(tmp_path, lora, same):
    model = with_lora(tiny()) if lora else tiny()
    first = niwaki.DynamicSparsity(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path, first, [Dying(5)]).train()
    died = first.controller
    second = first if same else niwaki.DynamicSparsity(**OPTIONS)
    trainer(model, tmp_path, second).train()
    assert died.state == "detached"
    assert second.controller.zeros == round(0.6 * second.controller.total)


def test_a_resume_that_is_refused_leaves_the_model_without_masks(tmp_path):
    run = trainer(
        with_lora(tiny()), tmp_path, niwaki.DynamicSparsity(**OPTIONS), [Dying(5)], save_strategy="steps", save_steps=4
    )
    with pytest.raises(KeyboardInterrupt):
        run.train()
    (tmp_path / "checkpoint-4" / "dynamic.safetensors").write_bytes(b"damaged")
    again = trainer(with_lora(tiny()), tmp_path, niwaki.DynamicSparsity(**OPTIONS))
    with pytest.raises(niwaki.RequestError, match="checkpoint must hold"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not masks_of(again.model)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"bias": "all"}, "sa_layer_norm.bias"),
        ({"bias": "lora_only"}, "q_lin.base_layer.bias"),
        ({"modules_to_save": ["classifier"]}, "classifier.modules_to_save.default.weight"),
    ],
)
def test_all_that_an_adapter_owns_is_trained_and_put_back(monkeypatch, options, part):
    model = with_lora(tiny(), **options)
    before = state(model)
    monkeypatch.setattr("niwaki.methods.finetune.task_loss", breaking(task_loss, KeyboardInterrupt(), at=3))
    with pytest.raises(KeyboardInterrupt):
        niwaki.finetune(model, niwaki.Finetune(), batches(count=4, rows=6))
    assert_same(state(model), before)
    monkeypatch.setattr("niwaki.methods.finetune.task_loss", task_loss)
    niwaki.finetune(model, niwaki.Finetune(), batches(count=2, rows=6))
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before["tensors"][n])}
    assert any(name.endswith(part) for name in changed)
    assert not any(name.endswith("q_lin.base_layer.weight") or "original_module" in name for name in changed)
