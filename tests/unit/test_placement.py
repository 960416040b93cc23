"""Where a model lies: a device by its name, weights that Accelerate placed, activations in a folder of the user's."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import accelerate
import pytest
import torch

import niwaki
from niwaki.numerics.device import device_named
from niwaki.observe.stream import Stream
from niwaki.run.folder import activations_in
from tiny import batches, logits, tiny, with_lora

STAGES = [niwaki.Structured(flops=0.6), niwaki.LayerAdaptive(sparsity=0.6)]


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(niwaki.RequestError, match=rf"device must be auto or one .*\(cpu.*\), got '{name}'"):
            device_named(name)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_a_model_that_accelerate_dispatched_is_pruned_to_the_same_bytes(stage):
    model, data = tiny("llama"), batches(2, family="llama")
    placed = accelerate.dispatch_model(copy.deepcopy(model), {name: "cpu" for name, _ in model.named_children()},
                                       force_hooks=True)  # fmt: skip
    assert any(hasattr(module, "_hf_hook") for module in placed.modules())
    for each in (model, placed):
        niwaki.prune_(each, stage, data)
    wanted = model.state_dict()
    assert placed.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in placed.state_dict().items())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("stage", [
    niwaki.Structured(flops=0.5, drop_layers=1, reconstruct="none"),
    niwaki.LayerAdaptive(sparsity=0.6, weight_score="magnitude", repair="none", allocation="uniform"),
    niwaki.LayerAdaptive(sparsity=0.6),
], ids=["structured", "masked", "layer-adaptive"])  # fmt: skip
def test_it_says_what_a_model_says_that_nobody_placed_and_moves_inputs_as_before(stage, family, lora):
    model, data = tiny(family), batches(2, family=family)
    model = with_lora(model) if lora else model
    placed = accelerate.dispatch_model(copy.deepcopy(model), {name: "cpu" for name, _ in model.named_children()},
                                       force_hooks=True)  # fmt: skip
    before = [(module, vars(module)["forward"]) for module in placed.modules() if "forward" in vars(module)]
    for each in (model, placed):
        niwaki.prune_(each, stage, data)
    assert all(vars(module).get("forward") is forward for module, forward in before)
    assert torch.equal(logits(placed, data[0]), logits(model, data[0]))
    merged = niwaki.merge_(copy.deepcopy(placed))
    niwaki.remove_masks_(merged)
    assert torch.allclose(logits(merged, data[0]), logits(model, data[0]), atol=1e-5)


def test_weights_that_wait_elsewhere_are_refused():
    model = accelerate.cpu_offload(tiny("llama"), torch.device("cpu"))
    with pytest.raises(niwaki.RequestError, match=r"model must hold its weights in memory .*offloaded"):
        niwaki.prune_(model, STAGES[0], batches(2, family="llama"))


def test_activations_lie_where_they_are_asked_and_go_when_the_run_fails(tmp_path):
    before, out = tempfile.gettempdir(), str(tmp_path / "out")
    others = {tmp_path / f"niwaki-0123456789ab-{os.getpid()}", tmp_path / "niwaki-mine"}
    for other in others:
        other.mkdir()
    killed = []

    def fail():
        with activations_in(str(tmp_path), out), Stream(tiny(), batches()) as stream:
            (place,) = set(tmp_path.iterdir()) - others
            assert place in Path(stream.folder.name).parents
            killed.append(place.with_name(place.name.replace(str(os.getpid()), "4194399")))
            killed[0].mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tempfile.gettempdir() == before
    assert set(tmp_path.iterdir()) == {*others, *killed}
    with activations_in(str(tmp_path), out):
        assert not killed[0].exists()
    assert set(tmp_path.iterdir()) == others
    with pytest.raises(niwaki.RequestError, match="activations_dir must be a folder that can be written, got"):
        activations_in(str(tmp_path / "none"), out).__enter__()
    with activations_in(None, out):
        assert tempfile.gettempdir() == before
