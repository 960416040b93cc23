"""Two processes (gloo) are one at the same global batch: equal masks everywhere, the gradient of the whole batch."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import niwaki
from tiny import batches, tiny, with_lora

STEPS = 6


def train(rank, world, lora):
    torch.set_num_threads(1)
    model = (with_lora(tiny()) if lora else tiny()).double().eval()  # no dropout
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    options = {"sparsity": 0.6, "interval": 1, "window": 2, "reach": 0.5, "stop": 1.0}
    options |= {"allocation": "erk", "start_sparsity": 0.1}
    controller = niwaki.DynamicSparsity(**options).attach(model, optimizer, STEPS)
    for step in range(STEPS):
        batch = {key: value[rank::world] for key, value in batches(4)[step % 4].items()}
        wrapped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    controller.finish()
    return {name: mask.clone() for name, mask in controller.masks.items()}


def worker(rank, store, folder, lora):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    torch.save(train(rank, 2, lora), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("lora", [True])
def test_two_processes_are_one(tmp_path, lora):
    mp.spawn(worker, (tmp_path / "store", tmp_path, lora), nprocs=2)
    alone = train(0, 1, lora)
    for rank in range(2):
        masks = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(mask, masks[name]) for name, mask in alone.items())
