"""A table of real timings: what attention and FFN cost on this machine at every width, in milliseconds.

One layer of the model is cut to several numbers of heads and of neurons and timed alone, all widths in turn, round
after round, to and fro; the fastest of each is taken. Where a straight line tells nearly all of it, the line is the
cost (what is left is noise, and a knapsack would buy it); on hardware that works in steps the timings are made
non-falling (isotonic regression: a narrower matrix is never dearer) and joined. Timings are kept in `$NIWAKI_CACHE`,
`~/.cache/niwaki` by default, under a key of all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from niwaki.anatomy import Site, evaluation_mode, first_layer_call, layers_of, sites_of, unwrap
from niwaki.evaluate.latency import random_inputs, seconds_of
from niwaki.evaluate.machine import timed_on
from niwaki.evaluate.plain import copy_apart, plain_model
from niwaki.surgery import cut_

FORMAT = 2
"""Of the timings in the cache; another where they are taken or kept in another way."""
ROUNDS = 16
LEVELS = 12
"""About this many widths of each kind are timed."""
STRAIGHT = 0.97
"""Share of the variance of the timings from which a straight line is taken for the whole truth."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """`costs` by site name: `[units + 1]` milliseconds of keeping 0, 1, ... units; `fixed` what no site owns."""

    costs: dict[str, Tensor]
    fixed: float


@dataclass(frozen=True)
class _Timings:
    """Milliseconds of the whole model, and of one layer at `widths` heads or neurons (the other kind at its least)."""

    model: float
    attention: dict[int, float]
    ffn: dict[int, float]


def latency_table(model: nn.Module, batch_size: int, length: int) -> LatencyTable:
    """Time the sites of `model` on random tokens `[batch_size, length]`; adapters merged, masks written, in a copy.

    A site's cost at its least timed width counts as `fixed`, as do embeddings and task head: all that the difference
    between the whole model and its sites' costs holds.
    """
    sites = sites_of(model)
    timings = _cached(_key(model, sites, batch_size, length), lambda: _time(plain_model(model), batch_size, length))
    curves = {"attention": _curve(timings.attention), "ffn": _curve(timings.ffn)}
    costs = {site.name: torch.from_numpy(curves[site.kind][: site.units + 1] * site.runs) for site in sites}
    return LatencyTable(costs, timings.model - sum(float(cost[-1]) for cost in costs.values()))


def _time(plain: nn.Module, batch_size: int, length: int) -> _Timings:
    sites, inputs = sites_of(plain), random_inputs(plain, batch_size, length)
    device = next(plain.parameters()).device
    widest = {kind: max((s for s in sites if s.kind == kind), key=lambda s: s.units) for kind in ("attention", "ffn")}
    pairs = [(site, width) for site in widest.values() for width in _levels(site)]
    with evaluation_mode(plain), torch.inference_mode():
        args, kwargs = first_layer_call(plain, inputs)
        calls: list[Callable[[], Any]] = [lambda: plain(**inputs)]
        for site, width in pairs:
            layer = _narrow_layer(plain, site, width)
            calls.append(lambda layer=layer: layer(*args, **kwargs))
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
    return _Timings(whole, found["attention"], found["ffn"])


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
    narrow = copy_apart(plain, [layers_of(plain)[site.layer]])
    plan = {other.name: torch.arange(other.units) for other in sites_of(narrow)}
    for other in sites_of(narrow):
        if other.layer == site.layer:
            plan[other.name] = torch.arange(width if other.kind == site.kind else _levels(other)[0])
    cut_(narrow, plan)
    return layers_of(narrow)[site.layer]


def _curve(timings: dict[int, float]) -> np.ndarray:
    """Milliseconds above the least timed width, for 0 to the greatest number of units."""
    widths = np.array(sorted(timings))
    milliseconds = np.array([timings[width] for width in widths])
    fitted = IsotonicRegression().fit_transform(widths, milliseconds)
    if len(widths) > 2:
        line = LinearRegression().fit(widths[:, None], milliseconds)
        if line.score(widths[:, None], milliseconds) > STRAIGHT and line.coef_[0] > 0:
            fitted = line.predict(widths[:, None])
    return np.interp(np.arange(widths[-1] + 1), widths, fitted - fitted[0])


_COSTS_NOTHING = {"_name_or_path", "transformers_version", "architectures", "id2label", "label2id"}
"""What a config says that no timing depends on."""


def _key(model: nn.Module, sites: list[Site], batch_size: int, length: int) -> str:
    """The same for all that takes the same time: of two models of one shape one is timed."""
    inner = unwrap(model)
    said = {
        "taken": [FORMAT, ROUNDS, LEVELS],
        "machine": timed_on(next(inner.parameters()).device),
        "dtypes": sorted({str(parameter.dtype) for parameter in inner.parameters()}),
        "attention": inner.config._attn_implementation,
        "model": type(inner).__name__,
        "labels": inner.config.num_labels,
        "config": {k: v for k, v in inner.config.to_dict().items() if k not in _COSTS_NOTHING},
        "sites": [[site.name, site.units, site.width, site.heads, site.groups, site.runs] for site in sites],
        "tokens": [batch_size, length],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _cached(key: str, make: Callable[[], _Timings]) -> _Timings:
    folder = Path(os.environ.get("NIWAKI_CACHE") or Path.home() / ".cache" / "niwaki")
    path = folder / f"latency-{key}.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        by_width = {kind: {int(k): float(v) for k, v in read[kind].items()} for kind in ("attention", "ffn")}
        return _Timings(float(read["model"]), **by_width)
    except (OSError, ValueError, KeyError):
        made = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(asdict(made), file)
        Path(file.name).replace(path)
    except OSError:  # a machine whose home cannot be written to times anew
        pass
    return made
