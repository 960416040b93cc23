"""Models of MobileLLM's shapes with random weights: the cost, memory and speed of what is done to them.

    python benchmarks/mobilellm.py sparsegpt blocks speed

`sparsegpt` prunes the 125M shape to sparsity 0.5 on 32 x 512 random tokens, as published (uniform, no refit): `cost` is
its seconds over those of one forward pass over these tokens, in the same run; `over` its peak memory over what the rule
allows: the model with its masks, one block's sums and the calibration activations. `blocks` takes 13, 27 and 54 blocks
of the 1B shape in bfloat16 through layer-adaptive Wanda and through structured pruning, on 8 x 128 tokens, so that two
cores need half an hour: seconds, seconds a block, and peak memory (MiB). `speed` times prefill (512 tokens) and
decoding (64 tokens after 64) of the 125M shape cut to half its FLOPs beside the dense one, in turn. `device` does the
1B shape on a GPU and is skipped where there is none. Every case is a process of its own; the JSON keeps what other
calls have measured. Needs no files.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import niwaki
from common import RESULTS, environment, note, resumed
from memory import MIB, resident
from niwaki.adapters import remove_masks_
from niwaki.anatomy import count, linears_of
from niwaki.evaluate import paired
from niwaki.run.memory import needed, weight_bytes

SHAPES = {
    "125M": {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1B": {
        "num_hidden_layers": 54,
        "hidden_size": 1280,
        "intermediate_size": 3584,
        "num_attention_heads": 20,
        "num_key_value_heads": 5,
    },
}
VOCABULARY, CONTEXT = 32_000, 512
BLOCKS = (13, 27, 54)
TECHNIQUES: dict[str, Any] = {
    "wanda": niwaki.LayerAdaptive(sparsity=0.5, weight_score="wanda", allocation="uniform", repair="none"),
    "structured": niwaki.Structured(flops=0.8),
}
SPARSEGPT = niwaki.LayerAdaptive(sparsity=0.5, weight_score="sparsegpt", allocation="uniform", repair="none")


def built(shape: str, dtype: torch.dtype = torch.float32, **changed: int) -> LlamaForCausalLM:
    """A random model of one of MobileLLM's shapes, its embeddings shared."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{**SHAPES[shape], **changed}, vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tokens(rows: int, length: int, batch: int) -> list[dict[str, torch.Tensor]]:
    """Batches of random tokens without padding."""
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(batch)]


def peak_of(work: Callable[[], Any], model: torch.nn.Module) -> tuple[Any, float]:
    """What `work` gives, and the most resident memory (MiB) above what was there, plus the model."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    found = work()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    return found, weights + resident("VmHWM") - before


def sparsegpt(rows: int = 32, batch: int = 4, blocks: int = 30) -> dict[str, float]:
    """Cost and memory of SparseGPT on the 125M shape."""
    small = built("125M", num_hidden_layers=1)
    niwaki.prune_(small, SPARSEGPT, tokens(1, 64, 1))  # what is loaded at the first use is loaded now
    del small
    model, data = built("125M", num_hidden_layers=blocks), tokens(rows, CONTEXT, batch)
    allowed = {
        "model": sum(p.numel() * p.element_size() for p in model.parameters()) / MIB,
        "masks": sum(x.size for x in linears_of(model)) / 8 / MIB,
        "statistics": sum(8 * (x.shape[1] + 1) ** 2 for x in linears_of(model) if x.layer == 0) / MIB,
        "activations": 4 * rows * CONTEXT * model.config.hidden_size / MIB,
    }
    estimate = allowed["model"] + needed(model, SPARSEGPT, data) / MIB
    forward = forward_seconds(model, data)
    result, peak = peak_of(lambda: niwaki.prune_(model, SPARSEGPT, data), model)
    forward = (forward + forward_seconds(model, data)) / 2
    return {
        **allowed,
        "peak": peak,
        "over": peak / sum(allowed.values()),
        "estimate": estimate,
        "achieved": result.achieved,
        "forward": forward,
        "cost": result.seconds / forward,
    }


@torch.inference_mode()
def forward_seconds(model: LlamaForCausalLM, data: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of one forward pass over the batches."""
    started = time.perf_counter()
    for batch in data:
        model(**batch, use_cache=False)
    return time.perf_counter() - started


def blocks(technique: str, number: int, rows: int = 8) -> dict[str, float]:
    """One technique on so many blocks of the 1B shape in bfloat16."""
    model, data = built("1B", torch.bfloat16, num_hidden_layers=number), tokens(rows, 128, 4)
    estimate = (weight_bytes(model) + needed(model, TECHNIQUES[technique], data)) / MIB
    result, peak = peak_of(lambda: niwaki.prune_(model, TECHNIQUES[technique], data), model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "achieved": result.achieved,
        "seconds": result.seconds,
        "seconds_a_block": result.seconds / number,
        "peak": peak,
        "estimate": estimate,
    }


@torch.inference_mode()
def speed(batch: int, rounds: int = 5) -> dict[str, float]:
    """Dense and cut to half the FLOPs: prefill of 512 tokens, and 64 tokens decoded after 64, each the median ratio."""
    dense, pruned = built("125M"), built("125M")
    options = {"head_score": "random", "neuron_score": "random", "repair": "none", "allocation": "uniform"}
    with torch.enable_grad():
        result = niwaki.prune_(pruned, niwaki.Structured(flops=0.5, **options), tokens(2, 512, 1))
    remove_masks_(pruned)
    prompt, long = (tokens(batch, length, batch)[0] for length in (64, 512))

    def decode(model: LlamaForCausalLM) -> None:
        model.generate(**prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)

    prefill = paired(lambda: dense(**long), lambda: pruned(**long), rounds)
    whole = paired(lambda: decode(dense), lambda: decode(pruned), rounds)
    return {
        "achieved": result.achieved,
        "kept_flops": count(pruned, 512.0).block_flops / count(dense, 512.0).block_flops,
        "prefill": prefill.speedup,
        "decode": whole.speedup,
    }


def device(name: str = "cuda", rows: int = 32) -> dict[str, float]:
    """The 1B shape on a GPU: seconds of structured pruning, tokens a second dense and pruned."""
    model, data = built("1B", torch.bfloat16).to(name), tokens(rows, CONTEXT, 4)
    found: dict[str, float] = {"dense": tokens_a_second(model, name)}
    result = niwaki.prune_(model, niwaki.Structured(flops=0.5), data)
    return found | {"achieved": result.achieved, "seconds": result.seconds, "pruned": tokens_a_second(model, name)}


@torch.inference_mode()
def tokens_a_second(model: LlamaForCausalLM, name: str) -> float:
    """Tokens of batches of 16 x 512 that go through the model in a second."""
    inputs = {key: value.to(name) for key, value in tokens(16, CONTEXT, 16)[0].items()}
    for number in range(12):
        if number == 2:
            torch.cuda.synchronize()
            started = time.perf_counter()
        model(**inputs, use_cache=False)
    torch.cuda.synchronize()
    return 10 * 16 * CONTEXT / (time.perf_counter() - started)


CASES: dict[str, list[tuple[Any, ...]]] = {
    "sparsegpt": [()],
    "blocks": [(technique, number) for technique in TECHNIQUES for number in BLOCKS],
    "speed": [(1,), (16,)],
    "device": [()],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="+", choices=[*CASES])
    parser.add_argument("--case", help="measure this one, its arguments as JSON, and print it")
    parser.add_argument("--out", type=Path, default=RESULTS / "mobilellm.json")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(globals()[asked.what[0]](*json.loads(asked.case))))
        return
    found = resumed(asked) if asked.out.is_file() else environment(asked)
    for what in asked.what:
        if what == "device" and not torch.cuda.is_available():
            print("device: skipped, no GPU is at hand")
            continue
        for case in CASES[what]:
            command = [sys.executable, __file__, what, "--case", json.dumps(case)]
            more = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory is given back, so that a peak is what is held
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | more).stdout
            note(found, {"what": what, "case": list(case), **json.loads(told.splitlines()[-1])}, asked.out)


if __name__ == "__main__":
    main()
