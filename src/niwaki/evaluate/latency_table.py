"""A table of real timings: what attention and FFN cost on this machine at every width, in milliseconds.

The timings are those of `niwaki.evaluate.layer_timings`. Where a straight line tells nearly all of them, the line is
the cost (what is left is noise, and a knapsack would buy it); on hardware that works in steps the timings are made
non-falling (isotonic regression: a narrower matrix is never dearer) and joined. They are kept in `$NIWAKI_CACHE`,
`~/.cache/niwaki` by default, under a key of all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import Site, sites_of, unwrap
from niwaki.evaluate.layer_timings import LEVELS, ROUNDS, Timings, time_layers
from niwaki.evaluate.machine import timed_on
from niwaki.evaluate.plain import plain_model
from niwaki.export import engine_version
from niwaki.processes import from_first

FORMAT = 4
"""Of the timings in the cache; another where they are taken or kept in another way."""
STRAIGHT = 0.97
"""Share of the variance of the timings from which a straight line is taken for the whole truth."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """`costs` by site name: `[units + 1]` milliseconds of keeping 0, 1, ... units; `fixed` what no site owns."""

    costs: dict[str, Tensor]
    fixed: float


def latency_table(model: nn.Module, batch_size: int, length: int, engine: str = "pytorch") -> LatencyTable:
    """Time the sites of `model` on random tokens `[batch_size, length]`; adapters merged, masks written, in a copy.

    They are timed where `engine` runs them.

    A site's cost at its least timed width counts as `fixed`, as do embeddings and task head: all that the difference
    between the whole model and its sites' costs holds.
    """
    sites = sites_of(model)
    key = _key(model, sites, batch_size, length, engine)
    timings = _cached(key, lambda: time_layers(plain_model(model), batch_size, length, engine))
    curves = {"attention": _curve(timings.attention), "ffn": _curve(timings.ffn)}
    costs = {site.name: torch.from_numpy(curves[site.kind][: site.units + 1] * site.runs) for site in sites}
    return LatencyTable(costs, timings.model - sum(float(cost[-1]) for cost in costs.values()))


def _curve(timings: dict[int, float]) -> np.ndarray:
    """Milliseconds above the least timed width, for 0 to the greatest number of units."""
    from sklearn.isotonic import IsotonicRegression  # here: scikit-learn is a tenth of the time that niwaki imports in
    from sklearn.linear_model import LinearRegression

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


def _key(model: nn.Module, sites: list[Site], batch_size: int, length: int, engine: str) -> str:
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
        "engine": engine_version(engine),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _cached(key: str, make: Callable[[], Timings]) -> Timings:
    """What the cache holds, or else is made; of several processes the first alone looks, and takes times."""
    found = from_first(lambda: _read_or_made(key, make))
    by_width = {kind: {int(k): float(v) for k, v in found[kind].items()} for kind in ("attention", "ffn")}
    return Timings(float(found["model"]), **by_width)


def _read_or_made(key: str, make: Callable[[], Timings]) -> dict[str, Any]:
    """Timings as JSON has them."""
    folder = Path(os.environ.get("NIWAKI_CACHE") or "~/.cache/niwaki").expanduser()
    path = folder / f"latency-{key}.json"
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.keys() == {"model", "attention", "ffn"}:
            return found
    made = asdict(make())
    with suppress(OSError):  # a machine whose home cannot be written to times anew
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(made, file)
        Path(file.name).replace(path)
    return made
