"""Measured latency: dense and pruned timed in turn (A B A B ...), and the median of the pair ratios quoted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import unwrap


def paired(dense: Callable[[], Any], pruned: Callable[[], Any], rounds: int = 15, warmup: int = 3) -> dict[str, float]:
    """Median milliseconds of both calls and the median of `dense / pruned` over the rounds."""
    for _ in range(warmup):
        dense()
        pruned()
    pairs = [(_seconds(dense), _seconds(pruned)) for _ in range(rounds)]
    return {
        "dense_ms": 1000 * statistics.median(a for a, _ in pairs),
        "pruned_ms": 1000 * statistics.median(b for _, b in pairs),
        "speedup": statistics.median(a / b for a, b in pairs),
    }


def _seconds(call: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def model_latency(
    dense: nn.Module, pruned: nn.Module, length: int, batch_sizes: tuple[int, ...] = (1, 32), rounds: int = 15
) -> dict[str, Any]:
    """The `latency` object of `result.json`: both models on random tokens without padding, `length` to a row."""
    result: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    device = next(dense.parameters()).device
    modes = dense.training, pruned.training
    dense.eval()
    pruned.eval()
    for size in batch_sizes:
        ids = torch.randint(5, unwrap(dense).config.vocab_size, (size, length), generator=generator).to(device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            result[f"batch_{size}"] = paired(lambda i=inputs: dense(**i), lambda i=inputs: pruned(**i), rounds)
    dense.train(modes[0])
    pruned.train(modes[1])
    return {**result, "seq_len": length, "threads": torch.get_num_threads(), "rounds": rounds}
