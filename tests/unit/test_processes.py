"""Processes (gloo) that share the work are one: the same units and masks, the same weights, the same figures."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file

import niwaki
from helpers_text import letter_tokenizer
from niwaki import processes
from niwaki.data.questions import Question
from niwaki.evaluate import encode_questions, fidelity, multiple_choice, quality
from niwaki.observe import Need, observe
from niwaki.observe.moments import input_moments
from tiny import batches, tiny, with_lora

RECOVERED = {"recover_epochs": 1, "gradient_accumulation": 2}
ASKED = {
    "structured": lambda: niwaki.Structured(flops=0.6),
    "by attention": lambda: niwaki.Structured(flops=0.5, head_score="attention-variance", neuron_score="activation"),
    "reconstructed": lambda: niwaki.Structured(flops=0.6, reconstruct="kept"),
    "learned": lambda: niwaki.Structured(flops=0.6),
    "layer-adaptive": lambda: niwaki.LayerAdaptive(sparsity=0.6),
    "learned under masks": lambda: niwaki.LayerAdaptive(sparsity=0.6),
    "searched": lambda: niwaki.LayerAdaptive(sparsity=0.6, allocation="search", pattern="4x1"),
    "sensitive": lambda: niwaki.LayerAdaptive(
        sparsity=0.6, allocation="inverse-importance", layer_score="sensitivity", importance_strength="auto"
    ),
    "recovered": lambda: niwaki.Structured(flops=0.6, repair="none", **RECOVERED),
    "recovered by predictions": lambda: niwaki.Structured(
        flops=0.6, repair="none", recover_loss="predictions", **RECOVERED
    ),
    "dynamic": lambda: niwaki.DynamicSparsityTraining(sparsity=0.6, epochs=2, interval=2),
    "dynamic by labels": lambda: niwaki.DynamicSparsityTraining(sparsity=0.6, epochs=2, interval=2, teacher="none"),
    "fast": lambda: niwaki.LayerAdaptive(sparsity=0.6, fast=True, allocation="inverse-importance"),
}
PLANNED = ("structured", "layer-adaptive")
"""Of these plans are made before, by one process."""
TRAINED = ("reconstructed", "recovered", "recovered by predictions", "dynamic", "dynamic by labels")
DATA = batches(5, rows=8)
LONGER = [*batches(9, rows=5), *batches(1, rows=1)]
"""Some of it is held out, and one batch has no row for a second process."""


def pruned(folder):
    found = {}
    for name in PLANNED:
        model = with_lora(tiny())
        done = niwaki.apply_(model, niwaki.Plan.load(folder / name), DATA)
        assert not done.warnings
        found |= {f"planned {name} {key}": value.detach().clone() for key, value in model.state_dict().items()}
    for name, config in ASKED.items():
        # AdamW makes a step of whatever is left of a gradient: what is trained is held against in double precision.
        model = with_lora(tiny()).double() if name in TRAINED else with_lora(tiny())
        for module in model.modules():  # which draws by the rows that a process has
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        data = LONGER if name.startswith("learned") else DATA  # layers learn by default where there are enough
        niwaki.prune_(model, config(), data, training_data=LONGER if name == "recovered" else None)
        found |= {f"{name} {key}": value.detach().clone() for key, value in model.state_dict().items()}
    return found


def figures():
    """What is measured of models, as numbers."""
    found = dict(quality(tiny(), DATA))
    found |= {f"fidelity {name}": value for name, value in fidelity(tiny(), tiny(seed=1), DATA).items()}
    model, tokenizer = tiny("llama"), letter_tokenizer()
    found |= quality(model, batches(3, family="llama"))
    questions = [Question("a b", ("c", "d e"), 1), Question("c", ("a", "b", "f"), 0), Question("d", ("e", "a b"), 0)]
    pairs = encode_questions(tokenizer, questions)
    return found | {name: mean.value for name, mean in multiple_choice(model, questions, pairs, 2).items()}


def sums():
    """What one pass over the data sums, and whole moments."""
    model = tiny()
    seen = observe(model, DATA, Need(task_gradients=True, gradient_moments=True, attention=True))
    found = {
        f"{name} {key}": value for name, own in (seen.linears | seen.sites).items() for key, value in vars(own).items()
    }
    found |= {f"{linear.name} whole": moments for linear, moments in input_moments(model, DATA)}
    return {name: torch.as_tensor(value) for name, value in found.items()}


def worker(rank, count, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=datetime.timedelta(minutes=5)
    )
    save_file(sums(), f"{folder}/{rank}-sums.safetensors")
    if count == 2:
        with pytest.raises(niwaki.RequestError, match="data must hold at least 2 batches, one for each process, got 1"):
            niwaki.prune_(tiny(), ASKED["structured"](), DATA[:1])
        made = processes.from_first(lambda: {"rank": processes.number(), "é": [1.5, None]})
        assert made == {"rank": 0, "é": [1.5, None]}
        parts = processes.shared_out(range(5), lambda item: {"item": item, "tensor": torch.full((item,), item)})
        assert [part["item"] for part in parts] == [len(part["tensor"]) for part in parts] == [0, 1, 2, 3, 4]
        told = {name: torch.tensor(value, dtype=torch.double) for name, value in figures().items()}
        save_file(pruned(folder) | told, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def launched(count, folder):
    """What so many processes found, each: forks of this one, which has imported everything."""
    arguments = (count, folder / f"store{count}", folder)
    torch.multiprocessing.start_processes(worker, arguments, nprocs=count, start_method="fork")  # type: ignore[attr-defined]


def test_two_processes_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ROWS", 7)  # so that a linear of a tiny model has several pieces
    (tmp_path / "four").mkdir()
    for name in PLANNED:
        niwaki.plan(with_lora(tiny()), ASKED[name](), DATA).save(tmp_path / name)
    launched(2, tmp_path)
    launched(4, tmp_path / "four")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, measured, summed = pruned(tmp_path), figures(), sums()
    finally:
        torch.set_num_threads(threads)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert {name: float(first[name]) for name in measured} == measured
    for name, wanted in alone.items():
        assert torch.equal(first[name], second[name]), name
        if wanted.is_floating_point():
            torch.testing.assert_close(first[name], wanted, rtol=1e-5, atol=1e-5, msg=name)
            assert torch.equal(first[name] == 0, wanted == 0), name
        else:
            assert torch.equal(first[name], wanted), name
    for folder in (tmp_path, tmp_path / "four"):
        shared = load_file(folder / "0-sums.safetensors")
        for name, wanted in summed.items():
            torch.testing.assert_close(shared[name], wanted, rtol=1e-6, atol=1e-9, msg=name)
