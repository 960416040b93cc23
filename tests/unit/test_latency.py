"""Latency budgets: the table of timings, its cache, and plans that are timed and corrected."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace

import peft
import pytest
import torch

import niwaki
from niwaki.adapters import apply_mask_, masks_of
from niwaki.allocation import Bounds, global_threshold
from niwaki.anatomy import layers_of, linears_of, sites_of
from niwaki.evaluate import model_latency, speedup
from niwaki.evaluate.latency_table import LatencyTable, latency_table
from niwaki.evaluate.layer_timings import Timings
from niwaki.evaluate.machine import timed_on
from niwaki.evaluate.plain import plain_model
from niwaki.masks import MaskedLinear
from niwaki.surgery import cut_
from tiny import CUT, batches, logits, tiny, with_lora

TABLE = import_module("niwaki.evaluate.latency_table")
TIMINGS = import_module("niwaki.evaluate.layer_timings")


def test_a_table_never_falls_and_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path))
    model = with_lora(tiny())
    table = latency_table(model, 2, 8)
    for site in sites_of(model):
        assert len(table.costs[site.name]) == site.units + 1
        assert (table.costs[site.name].diff() >= 0).all()
    (file,) = tmp_path.iterdir()
    timings = json.loads(file.read_text())
    file.write_text(json.dumps({**timings, "model": 1e6, "ffn": {"8": 1.0, "48": 5.0}}))
    again = latency_table(model, 2, 8)
    assert again.costs["layer.0.ffn"][48] == pytest.approx(4.0)
    assert again.costs["layer.0.ffn"][28] == pytest.approx(2.0)
    assert again.fixed > 9e5
    file.write_text("{")
    assert latency_table(model, 2, 8).fixed < 9e5
    latency_table(model, 2, 9)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_budget_is_measured_in_the_engine_that_is_asked(tmp_path, monkeypatch):
    pytest.importorskip("cyllama")
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path))
    monkeypatch.setattr(TIMINGS, "ROUNDS", 1)
    model, timed = tiny("llama", layers=2), []
    table = latency_table(model, 2, 8, "llama.cpp")
    assert all((table.costs[site.name].diff() >= 0).all() for site in sites_of(model))
    latency_table(model, 2, 8)
    assert len(list(tmp_path.iterdir())) == 2
    table = LatencyTable({site.name: torch.arange(site.units + 1).double() for site in sites_of(model)}, 0.0)
    monkeypatch.setattr("niwaki.allocation.budget.latency_table", lambda *asked: timed.append(asked[3]) or table)
    monkeypatch.setattr("niwaki.methods.structured.speedup", lambda *asked: timed.extend(asked[:2]) or 2.0)
    config = niwaki.Structured(latency=0.5, latency_engine="llama.cpp", **CUT)
    assert niwaki.prune_(model, config, batches(family="llama")).achieved == 0.5
    assert timed.pop(0) == "llama.cpp"
    assert all("forward" in vars(there) for there in timed), "PyTorch was timed"


def test_a_step_in_the_costs_is_used():
    # Widths 1 to 4 cost the same, so nobody stops between them.
    costs = torch.tensor([0.0, 4.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 8.0]).double()
    scores = {"a": torch.arange(8, 0, -1).double(), "b": torch.arange(8, 0, -1).double()}
    kept = global_threshold(scores, {name: Bounds(costs, 1) for name in scores}, 12.0)
    assert sorted(len(units) for units in kept.values()) == [4, 8]


@pytest.mark.parametrize("bias", [1.0, 1.3])
def test_a_plan_is_corrected_until_the_measured_ratio_fits(monkeypatch, bias):
    """The machine, made of arithmetic here, is slower than the table says by `bias`."""
    model = tiny()
    units = {site.name: site.units for site in sites_of(model)}
    costs = {name: torch.arange(n + 1).double() * (6 if "attention" in name else 1) for name, n in units.items()}
    table = LatencyTable(costs, 20.0)
    monkeypatch.setattr("niwaki.allocation.budget.latency_table", lambda *_: table)

    def milliseconds(model):
        return 20.0 + bias * sum(float(costs[site.name][site.units]) for site in sites_of(model))

    monkeypatch.setattr(
        "niwaki.methods.structured.speedup", lambda dense, pruned, *_: milliseconds(dense) / milliseconds(pruned)
    )
    dense = milliseconds(model)
    result = niwaki.prune_(model, niwaki.Structured(latency=0.6), batches())
    assert result.kind == "latency"
    assert result.achieved == pytest.approx(milliseconds(model) / dense)
    assert result.achieved == pytest.approx(0.6, rel=0.05)
    assert result.warnings == ()


def test_a_latency_that_cannot_be_met_is_refused_or_said(monkeypatch):
    model = tiny()
    units = {site.name: site.units for site in sites_of(model)}
    table = LatencyTable({name: torch.arange(n + 1).double() for name, n in units.items()}, 100.0)
    monkeypatch.setattr("niwaki.allocation.budget.latency_table", lambda *_: table)
    with pytest.raises(niwaki.RequestError, match=r"latency must be at least 0\.\d+"):
        niwaki.prune_(model, niwaki.Structured(latency=0.1), batches())
    monkeypatch.setattr("niwaki.methods.structured.speedup", lambda *_: 1.0)
    result = niwaki.prune_(model, niwaki.Structured(latency=0.7), batches())
    assert "0.7" in result.warnings[0]
    assert "1.000" in result.warnings[0]


def masked(model):
    """Half of the weights of every other linear masked."""
    torch.manual_seed(0)
    for linear in linears_of(model)[::2]:
        apply_mask_(linear.module, torch.rand(linear.shape) < 0.5)
    return model


HELD = {
    "masks": lambda: masked(tiny()),
    "masks of GPT-2": lambda: masked(tiny("gpt2")),
    "adapter": lambda: with_lora(tiny()),
    "masks under an adapter": lambda: masked(with_lora(tiny())),
    "adapter without the masks": lambda: with_lora(masked(tiny())),
}


@pytest.mark.parametrize("made", HELD.values(), ids=HELD)
def test_what_is_timed_is_the_model_as_others_load_it(made, monkeypatch, tmp_path):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path))
    monkeypatch.setattr(TIMINGS, "ROUNDS", 1)
    model, before = made(), made()
    with monkeypatch.context() as patched:
        for kind in (MaskedLinear, peft.tuners.lora.Linear):
            patched.setattr(kind, "forward", lambda *_: pytest.fail("masks or adapters were timed"))
        model_latency(model, model, 8, (2,), rounds=1)
        speedup(model, tiny(), 2, 8)
        latency_table(model, 2, 8)
    assert type(model) is type(before)
    for (name, now), (_, then) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert type(now) is type(then), name
    assert masks_of(model).keys() == masks_of(before).keys()
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then), name
        assert now.requires_grad == then.requires_grad
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_only_what_is_adapted_or_masked_is_copied():
    model = masked(tiny())
    plain, batch = plain_model(model), batches()[0]
    assert not any(isinstance(module, MaskedLinear) for module in plain.modules())
    torch.testing.assert_close(logits(plain, batch), logits(model, batch))
    ours, theirs = ({p.data_ptr() for p in part.parameters()} for part in (model, plain))
    held = [linear.module for linear in linears_of(model)[::2]]
    assert ours - theirs == {p.data_ptr() for module in held for p in module.parameters()}
    assert plain_model(plain) is plain
    tuned = with_lora(tiny())
    torch.testing.assert_close(logits(plain_model(tuned), batch), logits(tuned, batch))


def test_a_compiled_model_is_timed_as_its_layers_are():
    model = tiny()
    model._compiled_call_impl = model._call_impl  # what `model.compile()` sets
    assert plain_model(model)._compiled_call_impl is None
    assert model._compiled_call_impl is not None


@pytest.mark.parametrize("family", ["distilbert", "phi3", "gpt2", "mobilellm"])
def test_one_layer_is_copied_for_a_width_and_the_model_is_left_alone(family, monkeypatch, tmp_path):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path))
    monkeypatch.setattr(TIMINGS, "ROUNDS", 1)
    model, before = tiny(family).train(), tiny(family)
    shared, sizes = {p.data_ptr() for p in model.parameters()}, []

    def cut(narrow, plan):
        sizes.append(sum(p.numel() for p in narrow.parameters() if p.data_ptr() not in shared))
        cut_(narrow, plan)

    monkeypatch.setattr(TIMINGS, "cut_", cut)
    latency_table(model, 2, 8)
    assert len(sizes) > 4
    assert max(sizes) <= max(sum(p.numel() for p in layer.parameters()) for layer in layers_of(model))
    assert model.training
    assert model.config.to_dict() == before.config.to_dict()
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)


def set_config(name, value):
    return lambda _patch, model: setattr(model.config, name, value)


def set_in(*place):
    return lambda patch, _model: patch.setattr(*place)


DIFFERENT = {
    "Transformers": set_in("transformers.__version__", "6.1"),
    "PyTorch": set_in("torch.__version__", "3.0"),
    "format": set_in(TABLE, "FORMAT", -1),
    "rounds": set_in(TABLE, "ROUNDS", 99),
    "levels": set_in(TABLE, "LEVELS", 99),
    "threads": set_in("torch.get_num_threads", lambda: 77),
    "threads between": set_in("torch.get_num_interop_threads", lambda: 77),
    "cores": set_in("niwaki.evaluate.machine._cores", lambda: 77),
    "instructions": set_in("torch.backends.cpu.get_cpu_capability", lambda: "other"),
    "build": set_in("torch.__config__.show", lambda: "another MKL"),
    "precision": set_in("niwaki.evaluate.machine._precision", lambda: ["tf32"]),
    "attention kernels": set_in("torch.backends.cuda.flash_sdp_enabled", lambda: "no"),
    "determinism": set_in("torch.are_deterministic_algorithms_enabled", lambda: "yes"),
    "environment": lambda patch, _model: patch.setenv("KMP_BLOCKTIME", "7"),
    "activation": set_config("activation", "relu"),
    "labels": set_config("num_labels", 7),
    "attention": lambda _patch, model: model.set_attn_implementation("eager"),
    "dtype of a part": lambda _patch, model: model.classifier.double(),
}
SAME = {
    "name": set_config("_name_or_path", "elsewhere"),
    "names of labels": set_config("id2label", {0: "a", 1: "b", 2: "c"}),
    "weights": lambda _patch, model: torch.nn.init.zeros_(model.classifier.weight),
}


@pytest.mark.parametrize("changed", [*DIFFERENT, *SAME])
def test_timings_are_kept_for_all_that_they_depend_on(changed, monkeypatch, tmp_path):
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path))
    timed, timings = [], Timings(9.0, {1: 1.0, 4: 2.0}, {8: 1.0, 48: 2.0})
    monkeypatch.setattr(TABLE, "time_layers", lambda *_: timed.append(1) or timings)
    model = tiny()
    latency_table(model, 2, 8)
    latency_table(with_lora(tiny()), 2, 8)
    assert len(timed) == 1
    (DIFFERENT | SAME)[changed](monkeypatch, model)
    latency_table(model, 2, 8)
    assert len(timed) == (2 if changed in DIFFERENT else 1)


def test_another_gpu_of_the_same_index_is_another_machine(monkeypatch):
    gpu = {"name": "A", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80}
    found = []
    for changes in ({}, {"name": "B"}, {"multi_processor_count": 16}, {"total_memory": 20}):
        one = SimpleNamespace(**gpu | changes)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _device, one=one: one)
        found.append(json.dumps(timed_on(torch.device("cuda:0"))["device"]))
    assert len(set(found)) == len(found)
