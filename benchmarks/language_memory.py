"""What pruning a language model takes of memory, beside what `--max-memory` would be held against; time, by blocks.

    nice -n 19 python benchmarks/language_memory.py              # an hour or two on one thread
    python benchmarks/language_memory.py --shapes smollm2 --rows 8

Random Llamas of the shapes in `SHAPES` on random tokens, each in a process of its own; Linux only. Every step that the
command takes is made in turn: the dense model is copied and evaluated, the model pruned, evaluated, compared with the
dense one, timed. `resident` is the most that the process held in a step (VmHWM: libraries, model and all, the dense
copies, which are files mapped into memory, among it), `peak` the greatest of them. `held` is what it held with model
and data, `planned` what `--max-memory` would be held against with that, `right` planned over the peak of the pruning.
All sizes are in MiB. Rows of calibration hardly matter: their hidden states lie on disk.

`blocks` prunes models of as many layers: `per_layer` is what a layer takes of the pruning's time, over that of a layer
of the first model; 1 is time that is linear in blocks. Needs no files.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import niwaki
from common import RESULTS, note, resumed
from memory import MIB, peak_is_now, resident
from niwaki.checkpoint import mapped_copy
from niwaki.evaluate import fidelity, model_latency, perplexity
from niwaki.numerics.allocator import give_back
from niwaki.run.memory import needed, weight_bytes

STAGES = {"structured": niwaki.Structured(flops=0.5), "layer-adaptive": niwaki.LayerAdaptive(sparsity=0.5)}


@dataclass(frozen=True)
class Shape:
    """A model, and the rows of so many tokens that it is calibrated on."""

    layers: int
    width: int
    heads: int
    groups: int
    neurons: int
    vocabulary: int
    dtype: torch.dtype
    rows: int
    length: int
    batch: int


SHAPES = {
    "smollm2": Shape(30, 576, 9, 3, 1536, 49152, torch.float32, 64, 512, 4),
    # MobileLLM-1B, and two blocks of Llama 2 7B.
    "1b": Shape(54, 1280, 20, 5, 3584, 32000, torch.bfloat16, 4, 256, 2),
    "7b-blocks": Shape(2, 4096, 32, 32, 11008, 32000, torch.bfloat16, 4, 256, 2),
    "8 layers": Shape(8, 576, 9, 3, 1536, 49152, torch.float32, 4, 256, 2),
    "16 layers": Shape(16, 576, 9, 3, 1536, 49152, torch.float32, 4, 256, 2),
}
BLOCKS = ("8 layers", "16 layers")
CASES = [("smollm2", "structured"), ("1b", "layer-adaptive"), ("1b", "structured"), ("7b-blocks", "layer-adaptive")]


def built(shape: Shape) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A random model and its batches."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        intermediate_size=shape.neurons,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype=shape.dtype,
    )
    ids = torch.randint(5, shape.vocabulary, (shape.rows, shape.length))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(shape.batch)]
    torch.set_default_dtype(shape.dtype)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model, batches


def measure(name: str, rows: int | None, method: str) -> dict[str, Any]:
    """One case, in this process."""
    shape, stage = SHAPES[name], STAGES[method]
    give_back()  # as the command does
    small, few = built(Shape(1, 32, 2, 1, 32, 64, torch.float32, 2, 8, 2))
    niwaki.prune_(small, stage, few)  # what is loaded at the first use is loaded now
    model, batches = built(shape)
    batches = batches[: None if rows is None else -(-rows // shape.batch)]
    above, weights = needed(model, stage, batches), weight_bytes(model)
    gc.collect()
    tests, held, peaks, kept = batches[:1], peak_is_now(), dict[str, float](), dict[str, Any]()
    planned = held + (above + weights) / MIB  # the dense copy for what is measured is beside what the stage takes

    def step(what: str, do: Callable[[], Any]) -> Any:
        peak_is_now()
        begun = time.perf_counter()
        done = do()
        kept[what] = time.perf_counter() - begun
        peaks[what] = resident("VmHWM")
        return done

    dense = step("dense", lambda: mapped_copy(model))
    step("evaluate dense", lambda: perplexity(dense, tests))
    step("prune", lambda: niwaki.prune_(model, stage, batches))
    if name not in BLOCKS:
        step("evaluate", lambda: perplexity(model, tests))
        step("compare", lambda: fidelity(dense, model, tests))
        step("time", lambda: model_latency(dense, model, shape.length, rounds=3))
    return {
        "model": weights / MIB,
        "held": held,
        "resident": peaks,
        "peak": max(peaks.values()),
        "planned": planned,
        "right": planned / peaks["prune"],
        "seconds": kept["prune"],
    }


def in_process(name: str, rows: int | None, method: str) -> dict[str, Any]:
    """One case, in a process of its own."""
    command = [sys.executable, __file__, "--case", name, method, *(["--rows", str(rows)] if rows else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=[*dict.fromkeys(name for name, _ in CASES), "blocks"])
    parser.add_argument("--rows", type=int, help="calibration rows, in place of the shape's")
    parser.add_argument("--case", nargs=2, help="shape and method: measure this one and print it")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(asked.case[0], asked.rows, asked.case[1])))
        return
    asked.out = RESULTS / "language_memory.json"
    found = resumed(asked)
    for name, method in CASES:
        if name in asked.shapes:
            run = in_process(name, asked.rows, method)
            del run["seconds"]
            rounded = json.loads(json.dumps(run), parse_float=lambda text: round(float(text), 3))
            of = {"shape": name, "method": method, "rows": asked.rows or SHAPES[name].rows}
            note(found, {**of, **rounded}, asked.out)
    if "blocks" in asked.shapes:
        for method in STAGES:
            taken = [in_process(name, asked.rows, method)["seconds"] / SHAPES[name].layers for name in BLOCKS]
            ratios = dict(zip(BLOCKS, (round(seconds / taken[0], 3) for seconds in taken), strict=True))
            note(found, {"shape": "blocks", "method": method, "per_layer": ratios}, asked.out)


if __name__ == "__main__":
    main()
