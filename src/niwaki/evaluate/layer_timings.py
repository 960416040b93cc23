"""What one layer takes at several widths, in milliseconds: of a real layer, cut and timed alone.

All widths are timed in turn, round after round, to and fro; the fastest of each is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import Site, evaluation_mode, first_layer_call, layers_of, sites_of
from niwaki.evaluate.latency import random_inputs, seconds_of
from niwaki.evaluate.plain import copy_apart
from niwaki.surgery import cut_

ROUNDS = 16
LEVELS = 12
"""About this many widths of each kind are timed."""


@dataclass(frozen=True)
class Timings:
    """Milliseconds of the whole model, and of one layer at `widths` heads or neurons (the other kind at its least)."""

    model: float
    attention: dict[int, float]
    ffn: dict[int, float]


def time_layers(plain: nn.Module, batch_size: int, length: int) -> Timings:
    """Time a model without adapters, and its widest attention and FFN at about `LEVELS` widths, on random tokens."""
    sites, device = sites_of(plain), next(plain.parameters()).device
    widest = {kind: max((s for s in sites if s.kind == kind), key=lambda s: s.units) for kind in ("attention", "ffn")}
    pairs = [(site, width) for site in widest.values() for width in _levels(site)]
    narrow = [_narrow_layer(plain, site, width) for site, width in pairs]
    with evaluation_mode(plain), torch.inference_mode():
        inputs = random_inputs(plain, batch_size, length)
        args, kwargs = first_layer_call(plain, inputs)
        calls: list[Callable[[], Any]] = [lambda: plain(**inputs)]
        calls += [lambda layer=layer: layer(*args, **kwargs) for layer in narrow]
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
        found[site.kind][width] = milliseconds
    return Timings(whole, found["attention"], found["ffn"])


def _levels(site: Site) -> list[int]:
    """About `LEVELS` widths of a site, from the least to all units; neurons in multiples of 8."""
    least = 1 if site.kind == "attention" else 8
    if site.fixed or site.units <= least:
        return [site.units]
    step = max(least, site.units // LEVELS // least * least)
    return sorted({least, *range(step, site.units, step), site.units})


def _narrow_layer(plain: nn.Module, site: Site, width: int) -> nn.Module:
    """A copy of the layer of `site`, cut to `width` of its units and to the least level of the other site there.

    Nothing else of the model is copied.
    """
    least = {other.name: _levels(other)[0] for other in sites_of(plain) if other.layer == site.layer}
    narrow = copy_apart(plain, [layers_of(plain)[site.layer]])
    plan = {other.name: torch.arange(other.units) for other in sites_of(narrow)}
    for name in least:
        plan[name] = torch.arange(width if name == site.name else least[name])
    cut_(narrow, plan)
    return layers_of(narrow)[site.layer]
