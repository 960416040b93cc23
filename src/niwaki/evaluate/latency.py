"""Measured latency: dense and pruned timed in turn in one run, and the median of the pair ratios quoted."""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import evaluation_mode, is_language_model, longest_input, supported_task, unwrap
from niwaki.errors import RequestError
from niwaki.evaluate.generation import feed
from niwaki.evaluate.plain import plain_model
from niwaki.numerics.allocator import as_elsewhere
from niwaki.progress import Bar, bar

_FEWEST = 3
"""Rounds that are timed, unless a round alone takes minutes."""
_LONG = 60.0
"""Seconds after which `result.json` is content with the rounds there are: long calls vary less, in proportion."""

_DECODED = 16
"""Tokens that are fed one by one."""
_LONGER = 4
"""Times as many tokens as the others that a longer row has, where the model takes so many, but twice at least."""
_SELDOM = 5
"""Rounds at most of what is timed beside the batches that were asked."""
_PROMPTS = 1024
"""Tokens of all rows of a batch at most that a language model reads at once: of more, a pass takes minutes."""


@dataclass(frozen=True)
class PairedTiming:
    """Median milliseconds of either call, and `speedup`: the median over the rounds of dense time / pruned time.

    `times` are the seconds of both in each round.
    """

    times: tuple[tuple[float, ...], ...]

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the first call."""
        return 1000 * statistics.median(dense for dense, _ in self.times)

    @property
    def pruned_ms(self) -> float:
        """Milliseconds of the second call."""
        return 1000 * statistics.median(pruned for _, pruned in self.times)

    @property
    def speedup(self) -> float:
        """How many times as fast the second call is."""
        return statistics.median(dense / pruned for dense, pruned in self.times)

    @property
    def rounds(self) -> int:
        """How often both were timed."""
        return len(self.times)

    def to_dict(self, calls: int = 1) -> dict[str, Any]:
        """As in `result.json`, where what was timed are so many calls; with the quartiles of all rounds."""
        dense, pruned = ([1000 * seconds / calls for seconds in side] for side in zip(*self.times, strict=True))
        return {
            "dense_ms": self.dense_ms / calls,
            "pruned_ms": self.pruned_ms / calls,
            "speedup": self.speedup,
            "quartiles": {
                "dense_ms": _quartiles(dense),
                "pruned_ms": _quartiles(pruned),
                "speedup": _quartiles([before / after for before, after in self.times]),
            },
        }


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, (25, 75))]


def paired(
    dense_call: Callable[[], Any],
    pruned_call: Callable[[], Any],
    rounds: int = 15,
    warmup: int = 3,
    device: torch.device | str | None = None,
    most_seconds: float = math.inf,
) -> PairedTiming:
    """Time both calls once a round, after `warmup` untimed rounds; which goes first alternates.

    Fewer rounds, but three at least, where `most_seconds` have gone by before; and one where twice as many have.

    On a CUDA `device` the clock is read only when the device has finished.

    Raises:
        RequestError: `rounds` below 1.
    """
    return PairedTiming(tuple(in_turn((dense_call, pruned_call), rounds, warmup, device, most_seconds)))


def in_turn(
    calls: Sequence[Callable[[], Any]],
    rounds: int,
    warmup: int = 3,
    device: torch.device | str | None = None,
    most_seconds: float = math.inf,
    shown: Bar | None = None,
) -> list[tuple[float, ...]]:
    """Seconds of every call in each round, after `warmup` untimed rounds; every other round goes backwards.

    As `paired`, which is this for two. A bar that is `shown` moves by one a round, between the calls that are timed.
    """
    if rounds < 1:
        raise RequestError(f"rounds must be at least 1, got {rounds}")
    times: list[tuple[float, ...]] = []
    started = time.perf_counter()
    with as_elsewhere():
        for number in range(warmup + rounds):
            spent = time.perf_counter() - started
            if spent > most_seconds and (len(times) >= _FEWEST or (times and spent > 2 * most_seconds)):
                break
            order = list(range(len(calls)))[:: -1 if number % 2 else 1]
            taken = {index: seconds_of(calls[index], device) for index in order}
            if number >= warmup or spent > most_seconds / 2:  # what takes that long is warm
                times.append(tuple(taken[index] for index in range(len(calls))))
            if shown is not None:
                shown.update()
    return times


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


def check_length(model: nn.Module, length: int) -> None:
    """Refuse to time a model on longer rows than it takes.

    Raises:
        RequestError: naming the longest.
    """
    longest = longest_input(model)
    if length > longest:
        raise RequestError(f"latency_length must be at most {longest}, the positions of the model, got {length}")


def random_inputs(model: nn.Module, batch_size: int, length: int) -> dict[str, Tensor]:
    """Random tokens `[batch_size, length]` of the model's vocabulary on its device, none of them padding.

    Of a model that chooses among texts they are `[batch_size, 1, length]`: a batch is of so many texts for it, too.
    """
    check_length(model, length)
    vocabulary = unwrap(model).config.vocab_size
    generator = torch.Generator().manual_seed(0)
    # The first ids are padding and other marks in most vocabularies.
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch_size, length), generator=generator)
    ids = ids.to(next(model.parameters()).device)
    if supported_task(model).labels == "choice":
        ids = ids[:, None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def model_latency(
    dense: nn.Module,
    pruned: nn.Module,
    length: int,
    batch_sizes: tuple[int, ...] = (1, 32),
    rounds: int = 15,
    *,
    longer: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """The `latency` object of `result.json`: both models on the same random tokens `[batch, length]`, no padding.

    Language models are timed as they are used: they read prompts, of which they give the logits of the last token, in
    batches of `_PROMPTS` tokens at most (`seq_len` of a way then says how long they were); and `decode` is a token
    after those before it, the mean of `_DECODED`, batch 1, in five rounds. Of other models, where `longer` is asked,
    `batch_1_long` is one row of `_LONGER` times as many tokens, in as many rounds.

    The tokens are of the smaller vocabulary where one was trimmed. Adapters are merged and masks written into the
    weights, in a copy: what is timed is what others load.

    Both models are timed in evaluation mode and get their modes back. `rounds` is how often, at the least.
    """
    return time_models([dense, pruned], length, batch_sizes, rounds, longer=longer, progress=progress).pair(0, 1)


@dataclass(frozen=True, eq=False)
class Timed:
    """Models timed in turn on texts of `length` tokens, in so many `rounds`; `ways` are those of running them.

    Of each way `times` has the seconds of every model in each round.
    """

    length: int
    rounds: int
    ways: list[_Way]
    times: list[list[tuple[float, ...]]]

    def pair(self, dense: int, pruned: int) -> dict[str, Any]:
        """The `latency` object of `result.json` of two of the models."""
        pairs = [tuple((taken[dense], taken[pruned]) for taken in times) for times in self.times]
        found = {
            way.name: PairedTiming(each).to_dict(way.passes) | way.where_not_of(self.length)
            for way, each in zip(self.ways, pairs, strict=True)
        }
        return {**found, "seq_len": self.length, "threads": torch.get_num_threads(), "rounds": self.rounds}

    def each(self) -> list[dict[str, Any]]:
        """Of every model: way -> `ms` of a pass (the median), and the `tokens_per_second` of that."""
        found: list[dict[str, Any]] = [{} for _ in self.times[0][0]]
        for way, times in zip(self.ways, self.times, strict=True):
            for record, seconds in zip(found, zip(*times, strict=True), strict=True):
                taken = statistics.median(seconds)
                record[way.name] = {"ms": 1000 * taken / way.passes, "tokens_per_second": way.tokens / taken}
        return found


def time_models(
    models: Sequence[nn.Module],
    length: int,
    batch_sizes: tuple[int, ...] = (1, 32),
    rounds: int = 15,
    *,
    longer: bool = False,
    progress: bool = False,
) -> Timed:
    """Time models in turn, as `model_latency` says."""
    plain = [plain_model(model) for model in models]
    times: list[list[tuple[float, ...]]] = []
    with evaluation_mode(*plain), torch.inference_mode():
        ways = list(_ways(plain, length, batch_sizes, longer))
        ends = list(accumulate(way.warmup + way.rounds(rounds) for way in ways))
        with bar(phase="time", unit="rounds", total=max(ends, default=0), progress=progress) as shown:
            for way, end in zip(ways, ends, strict=True):
                most = way.rounds(rounds)
                times.append(in_turn(way.calls, most, way.warmup, way.device, _LONG, shown))
                rounds = min(rounds, len(times[-1])) if most == rounds else rounds
                shown.update(end - shown.n)  # what takes long is timed less often
    return Timed(length, rounds, ways, times)


@dataclass(frozen=True)
class _Way:
    """One thing that is timed: a call a model, which makes so many passes over so many tokens in all."""

    name: str
    calls: list[Callable[[], Any]]
    rows: int
    length: int
    device: torch.device
    passes: int = 1
    seldom: bool = False

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.length

    @property
    def warmup(self) -> int:
        """Rounds that are not timed."""
        return 1 if self.seldom else 3

    def where_not_of(self, length: int) -> dict[str, int]:
        """How long its rows are, where they are read at once and not of this length."""
        return {"seq_len": self.length} if self.passes == 1 and self.length != length else {}

    def rounds(self, asked: int) -> int:
        """What stands beside the batches that were asked is timed less often."""
        return min(_SELDOM, asked) if self.seldom else asked


def _ways(models: Sequence[nn.Module], length: int, batch_sizes: tuple[int, ...], longer: bool) -> Iterator[_Way]:
    """Batches of each size at once; of language models also token by token, of others a `longer` row if asked."""
    language = all(is_language_model(model) for model in models)
    for size in batch_sizes:
        yield _at_once(models, size, min(length, max(1, _PROMPTS // size)) if language else length)
    if language:
        smaller = _smaller(models)
        count = min(_DECODED, *(longest_input(model) for model in models))
        ids = random_inputs(smaller, 1, count)["input_ids"]
        calls = [lambda model=model: feed(model, ids) for model in models]
        yield _Way("decode", calls, 1, count, ids.device, count, seldom=True)
        return
    tokens = min(_LONGER * length, *map(longest_input, models))
    if longer and tokens >= 2 * length:
        yield replace(_at_once(models, 1, tokens), name="batch_1_long", seldom=True)


def _at_once(models: Sequence[nn.Module], size: int, length: int) -> _Way:
    """A batch of so many rows of this length."""
    inputs = random_inputs(_smaller(models), size, length)
    calls = [partial(model, **inputs, **last_logits(model)) for model in models]
    return _Way(f"batch_{size}", calls, size, length, inputs["input_ids"].device)


def _smaller(models: Sequence[nn.Module]) -> nn.Module:
    """The one with the fewest words."""
    return min(models, key=lambda model: unwrap(model).config.vocab_size)


def last_logits(model: nn.Module) -> dict[str, int]:
    """What asks a language model for the logits of the last token alone, where it can be asked."""
    takes = is_language_model(model) and "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if takes else {}


def speedup(dense: nn.Module, pruned: nn.Module, batch_size: int, length: int) -> float:
    """How many times as fast as `dense` the model `pruned` is on tokens `[batch_size, length]`, as measured."""
    models = plain_model(dense), plain_model(pruned)
    with evaluation_mode(*models), torch.inference_mode():
        way = _at_once(models, batch_size, length)
        return paired(way.calls[0], way.calls[1], device=way.device, most_seconds=_LONG).speedup
