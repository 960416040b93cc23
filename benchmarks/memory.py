"""Peak memory of layer-adaptive pruning as layers, width and calibration rows grow, beside what its rule allows.

    python benchmarks/memory.py

Random models of MiniLM's shape on random tokens (rows of 32, batches of 32), the default request at sparsity 0.8, each
case in a process of its own; Linux only. `peak` is the most resident memory (VmHWM, set back when model and data are
there) above what the process holds then, plus the model. The rule allows `model` + `statistics` (the sums of the least
squares of one layer, in float64) + `activations` (what a forward pass of one batch keeps for its backward pass). All
are in MiB; `over` is peak over their sum, `estimate` what `--max-memory` would be held against. The allocator is told
to give back what is freed (MALLOC_MMAP_THRESHOLD_); `peak_glibc` is the same without, when it keeps freed memory for
later. Needs no files.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

import niwaki
from common import RESULTS, environment, note
from niwaki.anatomy import linears_of
from niwaki.run.memory import needed
from niwaki.run.pass_memory import kept_for_backward

LENGTH, BATCH, MIB = 32, 32, 2**20
CASES = [(layers, 384, 256) for layers in (6, 12, 24)] + [(6, 384, rows) for rows in (1024, 4096)] + [(6, 768, 256)]


def built(layers: int, width: int, rows: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A random model and its batches."""
    torch.manual_seed(0)
    shape = DistilBertConfig(vocab_size=1000, dim=width, n_layers=layers, n_heads=width // 32, hidden_dim=4 * width)
    ids = torch.randint(5, 1000, (rows, LENGTH))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(BATCH)]
    return DistilBertForSequenceClassification(shape).eval(), batches


def resident(key: str) -> float:
    """MiB of this process: VmRSS as it is, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak_is_now() -> float:
    """MiB of this process as it is, from which its peak (VmHWM) is counted anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def kept_of(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """MiB that autograd keeps of one forward pass, weights aside."""
    with kept_for_backward(model) as kept:
        output = model(**batch).logits  # held, so that no storage is used twice
    del output
    return sum(kept.values()) / MIB


def measure(layers: int, width: int, rows: int) -> dict[str, float]:
    """One case, in this process."""
    request = niwaki.LayerAdaptive(sparsity=0.8)
    small, few = built(1, 32, BATCH)
    niwaki.prune_(small, request, few)  # what is loaded at the first use is loaded now
    model, batches = built(layers, width, rows)
    sums = [x.shape for x in linears_of(model) if x.layer == 0]
    allowed = {
        "model": sum(p.numel() * p.element_size() for p in model.parameters()) / MIB,
        "statistics": sum(8 * (n + 1) * (n + 1 + out) for out, n in sums) / MIB,
        "activations": kept_of(model, batches[0]),
    }
    estimate = allowed["model"] + needed(model, request, batches) / MIB
    gc.collect()
    before = peak_is_now()
    niwaki.prune_(model, request, batches)
    peak = allowed["model"] + resident("VmHWM") - before
    return {**allowed, "peak": peak, "over": peak / sum(allowed.values()), "estimate": estimate}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=int, nargs=3, help="layers, width, rows: measure this one and print it")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(*asked.case)))
        return
    found, out = environment(asked), RESULTS / "memory.json"
    for case in CASES:
        command = [sys.executable, __file__, "--case", *map(str, case)]
        told, kept = (
            json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | more).stdout
            )
            for more in ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {})
        )
        run = {name: round(value, 3) for name, value in {**told, "peak_glibc": kept["peak"]}.items()}
        note(found, {**dict(zip(("layers", "width", "rows"), case, strict=True)), **run}, out)


if __name__ == "__main__":
    main()
