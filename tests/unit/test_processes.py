"""Two processes (gloo) that share the calibration batches are one: the same units and masks, the same weights."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file

import niwaki
from niwaki import processes
from niwaki.numerics import gram
from tiny import batches, tiny, with_lora

RECOVERED = {"recover_epochs": 1, "recover_loss": "predictions", "gradient_accumulation": 2}
ASKED = {
    "structured": lambda: niwaki.Structured(flops=0.6),
    "by attention": lambda: niwaki.Structured(flops=0.5, head_score="attention-variance", neuron_score="activation"),
    "layer-adaptive": lambda: niwaki.LayerAdaptive(sparsity=0.6),
    "recovered": lambda: niwaki.Structured(flops=0.6, repair="none", **RECOVERED),
    "dynamic": lambda: niwaki.DynamicSparsityTraining(sparsity=0.6, epochs=2, interval=2, teacher="none"),
    "fast": lambda: niwaki.LayerAdaptive(sparsity=0.6, fast=True, allocation="inverse-importance"),
}
TRAINED = ("recovered", "dynamic")
DATA = batches(5, rows=8)


def pruned():
    torch.set_num_threads(1)
    gram.TOGETHER = 100  # pieces of two batches
    found = {}
    for name, config in ASKED.items():
        # AdamW makes a step of whatever is left of a gradient: what is trained is held against in double precision.
        model = with_lora(tiny()).double() if name in TRAINED else with_lora(tiny())
        for module in model.modules():  # which draws by the rows that a process has
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        niwaki.prune_(model, config(), DATA)
        found |= {f"{name} {key}": value.detach().clone() for key, value in model.state_dict().items()}
    return found


def worker(rank, store, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    with pytest.raises(niwaki.RequestError, match="data must hold at least 2 batches, one for each process, got 1"):
        niwaki.prune_(tiny(), ASKED["structured"](), DATA[:1])
    with pytest.raises(niwaki.RequestError, match="reconstruct must be none with several processes"):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.6, reconstruct="norms"), DATA)
    assert processes.from_first(lambda: {"rank": processes.number(), "é": [1.5, None]}) == {"rank": 0, "é": [1.5, None]}
    save_file(pruned(), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path, monkeypatch):
    torch.multiprocessing.spawn(worker, (tmp_path / "store", tmp_path), nprocs=2)  # type: ignore[attr-defined]
    monkeypatch.setattr(gram, "TOGETHER", gram.TOGETHER)
    alone = pruned()
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, wanted in alone.items():
        assert torch.equal(first[name], second[name]), name
        if wanted.is_floating_point():
            torch.testing.assert_close(first[name], wanted, rtol=1e-5, atol=1e-5, msg=name)
            assert torch.equal(first[name] == 0, wanted == 0), name
        else:
            assert torch.equal(first[name], wanted), name
