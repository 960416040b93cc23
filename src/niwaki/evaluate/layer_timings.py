"""What one layer takes at several widths, in milliseconds: of a real layer, cut and timed alone.

Where another engine runs the model, which takes it as a whole, the layer is timed within a model that is otherwise as
narrow as can be. All widths are timed in turn, round after round, to and fro; the fastest of each is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import Site, evaluation_mode, first_layer_call, layers_of, sites_of
from niwaki.evaluate.latency import last_logits, random_inputs, seconds_of
from niwaki.evaluate.plain import copy_apart
from niwaki.export import in_engine
from niwaki.numerics.allocator import as_elsewhere
from niwaki.surgery import cut_

ROUNDS = 16
LEVELS = 12
"""About this many widths of each kind are timed."""
LEVELS_THERE = 4
"""And this many where each is a model of its own, to be written for another engine and loaded there."""


@dataclass(frozen=True)
class Timings:
    """Milliseconds of the whole model, and of one layer at `widths` heads or neurons, what is beside them at its least.

    In another engine than PyTorch all that the model does beside is among the latter: their differences count.
    """

    model: float
    attention: dict[int, float]
    ffn: dict[int, float]


def time_layers(plain: nn.Module, batch_size: int, length: int, engine: str = "pytorch") -> Timings:
    """Time a model without adapters, and its widest attention and FFN at several widths, on random tokens.

    Raises:
        RequestError, WorkError: the `engine` does not take the model.
    """
    sites, device = sites_of(plain), next(plain.parameters()).device
    widest = {kind: max((s for s in sites if s.kind == kind), key=lambda s: s.units) for kind in ("attention", "ffn")}
    most = LEVELS if engine == "pytorch" else LEVELS_THERE
    pairs = [(site, width) for site in widest.values() for width in _levels(site, most)]
    inputs = random_inputs(plain, batch_size, length)
    alone_calls = _layers_alone if engine == "pytorch" else partial(_models_there, engine=engine)
    whole_model = in_engine(plain, engine)
    with evaluation_mode(plain), torch.inference_mode(), as_elsewhere():
        asked = inputs | last_logits(whole_model)
        calls: list[Callable[[], Any]] = [lambda: whole_model(**asked), *alone_calls(plain, pairs, inputs)]
        taken: list[list[float]] = [[] for _ in calls]
        for number in range(ROUNDS + 2):
            turn = list(zip(calls, taken, strict=True))
            # To and fro, so that no width always follows the same one: what is cached depends on it.
            for call, times in turn if number % 2 else turn[::-1]:
                seconds = seconds_of(call, device)
                if number >= 2:  # the first rounds warm caches up
                    times.append(1000 * seconds)
    whole, *alone = (min(times) for times in taken)
    found: dict[str, dict[int, float]] = {"attention": {}, "ffn": {}}
    for (site, width), milliseconds in zip(pairs, alone, strict=True):
        found[site.kind][width] = milliseconds if engine == "pytorch" else milliseconds / site.runs
    return Timings(whole, found["attention"], found["ffn"])


def _levels(site: Site, most: int) -> list[int]:
    """About `most` widths of a site, from the least to all units; neurons in multiples of 8."""
    least = _least(site)
    if least == site.units:
        return [least]
    step = max(least, site.units // most // least * least)
    return sorted({least, *range(step, site.units, step), site.units})


def _least(site: Site) -> int:
    """The least width that is timed."""
    return site.units if site.fixed else min(site.units, 1 if site.kind == "attention" else 8)


def _layers_alone(
    plain: nn.Module, pairs: list[tuple[Site, int]], inputs: dict[str, Tensor]
) -> list[Callable[[], Any]]:
    """Calls of one layer, for each width of a site."""
    args, kwargs = first_layer_call(plain, inputs)
    narrow = [_narrow_layer(plain, site, width) for site, width in pairs]
    return [lambda layer=layer: layer(*args, **kwargs) for layer in narrow]


def _models_there(
    plain: nn.Module, pairs: list[tuple[Site, int]], inputs: dict[str, Tensor], engine: str
) -> list[Callable[[], Any]]:
    """Calls of a narrow model in `engine`, for each width of a site."""
    calls: list[Callable[[], Any]] = []
    for site, width in pairs:
        narrow = copy_apart(plain, layers_of(plain))
        cut_(narrow, {s.name: torch.arange(width if s.name == site.name else _least(s)) for s in sites_of(narrow)})
        there = in_engine(narrow, engine)
        calls.append(lambda there=there: there(**inputs))
    return calls


def _narrow_layer(plain: nn.Module, site: Site, width: int) -> nn.Module:
    """A copy of the layer of `site`, cut to `width` of its units and to the least level of the other site there.

    Nothing else of the model is copied.
    """
    least = {other.name: _least(other) for other in sites_of(plain) if other.layer == site.layer}
    narrow = copy_apart(plain, [layers_of(plain)[site.layer]])
    plan = {other.name: torch.arange(other.units) for other in sites_of(narrow)}
    for name in least:
        plan[name] = torch.arange(width if name == site.name else least[name])
    cut_(narrow, plan)
    return layers_of(narrow)[site.layer]
