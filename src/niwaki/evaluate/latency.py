"""Measured latency: dense and pruned timed in turn in one run, and the median of the pair ratios quoted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import unwrap
from niwaki.errors import RequestError
from niwaki.evaluate.quality import evaluation_mode


@dataclass(frozen=True)
class PairedTiming:
    """Median milliseconds of either call, and `speedup`: the median over the rounds of dense time / pruned time."""

    dense_ms: float
    pruned_ms: float
    speedup: float
    rounds: int


def paired(
    dense_call: Callable[[], Any],
    pruned_call: Callable[[], Any],
    rounds: int = 15,
    warmup: int = 3,
    device: torch.device | str | None = None,
) -> PairedTiming:
    """Time both calls once a round, after `warmup` untimed rounds; which goes first alternates.

    On a CUDA `device` the clock is read only when the device has finished.

    Raises:
        RequestError: `rounds` below 1.
    """
    if rounds < 1:
        raise RequestError(f"rounds must be at least 1, got {rounds}")
    pairs: list[tuple[float, float]] = []
    for number in range(warmup + rounds):
        if number % 2:
            pruned = _seconds(pruned_call, device)
            dense = _seconds(dense_call, device)
        else:
            dense = _seconds(dense_call, device)
            pruned = _seconds(pruned_call, device)
        if number >= warmup:
            pairs.append((dense, pruned))
    return PairedTiming(
        dense_ms=1000 * statistics.median(dense for dense, _ in pairs),
        pruned_ms=1000 * statistics.median(pruned for _, pruned in pairs),
        speedup=statistics.median(dense / pruned for dense, pruned in pairs),
        rounds=rounds,
    )


def _seconds(call: Callable[[], Any], device: torch.device | str | None) -> float:
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device | str | None) -> None:
    if device is not None and torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def model_latency(
    dense: nn.Module, pruned: nn.Module, length: int, batch_sizes: tuple[int, ...] = (1, 32), rounds: int = 15
) -> dict[str, Any]:
    """The `latency` object of `result.json`: both models on the same random tokens `[batch, length]`, no padding.

    Both models are timed in evaluation mode and get their modes back.
    """
    result: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    device = next(dense.parameters()).device
    vocabulary = unwrap(dense).config.vocab_size
    with evaluation_mode(dense, pruned), torch.inference_mode():
        for size in batch_sizes:
            # The first ids are padding and other marks in most vocabularies.
            ids = torch.randint(min(5, vocabulary - 1), vocabulary, (size, length), generator=generator).to(device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            timing = paired(lambda i=inputs: dense(**i), lambda i=inputs: pruned(**i), rounds, device=device)
            result[f"batch_{size}"] = {
                "dense_ms": timing.dense_ms,
                "pruned_ms": timing.pruned_ms,
                "speedup": timing.speedup,
            }
    return {**result, "seq_len": length, "threads": torch.get_num_threads(), "rounds": rounds}
