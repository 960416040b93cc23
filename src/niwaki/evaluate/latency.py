"""Measured latency: dense and pruned timed in turn in one run, and the median of the pair ratios quoted."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import evaluation_mode, is_language_model, longest_input, supported_task, unwrap
from niwaki.errors import RequestError
from niwaki.evaluate.generation import feed
from niwaki.evaluate.plain import plain_model

_FEWEST = 3
"""Rounds that are timed however long they take."""
_LONG = 60.0
"""Seconds after which `result.json` is content with the rounds there are: long calls vary less, in proportion."""

_DECODED = 16
"""Tokens that are fed one by one."""


@dataclass(frozen=True)
class PairedTiming:
    """Median milliseconds of either call, and `speedup`: the median over the rounds of dense time / pruned time."""

    dense_ms: float
    pruned_ms: float
    speedup: float
    rounds: int

    def to_dict(self, calls: int = 1) -> dict[str, float]:
        """As in `result.json`, where what was timed are so many calls."""
        return {"dense_ms": self.dense_ms / calls, "pruned_ms": self.pruned_ms / calls, "speedup": self.speedup}


def paired(
    dense_call: Callable[[], Any],
    pruned_call: Callable[[], Any],
    rounds: int = 15,
    warmup: int = 3,
    device: torch.device | str | None = None,
    most_seconds: float = math.inf,
) -> PairedTiming:
    """Time both calls once a round, after `warmup` untimed rounds; which goes first alternates.

    Fewer rounds, but three at least, where `most_seconds` have gone by before.

    On a CUDA `device` the clock is read only when the device has finished.

    Raises:
        RequestError: `rounds` below 1.
    """
    if rounds < 1:
        raise RequestError(f"rounds must be at least 1, got {rounds}")
    pairs: list[tuple[float, float]] = []
    started = time.perf_counter()
    for number in range(warmup + rounds):
        if len(pairs) >= _FEWEST and time.perf_counter() - started > most_seconds:
            break
        if number % 2:
            pruned = seconds_of(pruned_call, device)
            dense = seconds_of(dense_call, device)
        else:
            dense = seconds_of(dense_call, device)
            pruned = seconds_of(pruned_call, device)
        if number >= warmup:
            pairs.append((dense, pruned))
    return PairedTiming(
        dense_ms=1000 * statistics.median(dense for dense, _ in pairs),
        pruned_ms=1000 * statistics.median(pruned for _, pruned in pairs),
        speedup=statistics.median(dense / pruned for dense, pruned in pairs),
        rounds=len(pairs),
    )


def seconds_of(call: Callable[[], Any], device: torch.device | str | None) -> float:
    """Seconds of one call; on a CUDA `device` until the device has finished."""
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device | str | None) -> None:
    if device is not None and torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def random_inputs(model: nn.Module, batch_size: int, length: int) -> dict[str, Tensor]:
    """Random tokens `[batch_size, length]` of the model's vocabulary on its device, none of them padding.

    Of a model that chooses among texts they are `[batch_size, 1, length]`: a batch is of so many texts for it, too.
    """
    longest = longest_input(model)
    if length > longest:
        raise RequestError(f"latency_length must be at most {longest}, the positions of the model, got {length}")
    vocabulary = unwrap(model).config.vocab_size
    generator = torch.Generator().manual_seed(0)
    # The first ids are padding and other marks in most vocabularies.
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch_size, length), generator=generator)
    ids = ids.to(next(model.parameters()).device)
    if supported_task(model).labels == "choice":
        ids = ids[:, None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def model_latency(
    dense: nn.Module, pruned: nn.Module, length: int, batch_sizes: tuple[int, ...] = (1, 32), rounds: int = 15
) -> dict[str, Any]:
    """The `latency` object of `result.json`: both models on the same random tokens `[batch, length]`, no padding.

    Of language models also `decode`: a token after those before it, the mean of `_DECODED`, batch 1,
    in five rounds.

    The tokens are of the smaller vocabulary where one was trimmed. Adapters are merged and masks written into the
    weights, in a copy: what is timed is what others load.

    Both models are timed in evaluation mode and get their modes back. `rounds` is how often, at the least.
    """
    dense, pruned = plain_model(dense), plain_model(pruned)
    result: dict[str, Any] = {}
    device = next(dense.parameters()).device
    smaller = min(dense, pruned, key=lambda model: unwrap(model).config.vocab_size)
    with evaluation_mode(dense, pruned), torch.inference_mode():
        for size in batch_sizes:
            inputs = random_inputs(smaller, size, length)
            timing = paired(
                lambda i=inputs: dense(**i), lambda i=inputs: pruned(**i), rounds, device=device, most_seconds=_LONG
            )
            rounds = min(rounds, timing.rounds)
            result[f"batch_{size}"] = timing.to_dict()
        if is_language_model(dense) and is_language_model(pruned):
            ids = random_inputs(smaller, 1, min(_DECODED, longest_input(dense), longest_input(pruned)))["input_ids"]
            timing = paired(
                lambda: feed(dense, ids), lambda: feed(pruned, ids), min(5, rounds), 1, device, most_seconds=_LONG
            )
            result["decode"] = timing.to_dict(calls=ids.shape[1])
    return {**result, "seq_len": length, "threads": torch.get_num_threads(), "rounds": rounds}


def speedup(dense: nn.Module, pruned: nn.Module, batch_size: int, length: int) -> float:
    """How many times as fast as `dense` the model `pruned` is on tokens `[batch_size, length]`, as measured."""
    return model_latency(dense, pruned, length, (batch_size,))[f"batch_{batch_size}"]["speedup"]
