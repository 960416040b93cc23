"""`sweep.json`: every point as measured, which of them are on the frontier, and which was picked.

FLOPs are counted at the length of the calibration rows, which the seed draws, so each point says what the dense model
takes at its own. All of it but `timed` is the same for the same sweep, whether it was killed and went on or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from niwaki.checkpoint import weight_files
from niwaki.config.sweep import Condition, Sweep, sweep_to_dict
from niwaki.errors import RequestError
from niwaki.evaluate.quality import lower_is_better
from niwaki.numerics.decimals import reaches
from niwaki.results import Result
from niwaki.run.sweep.frontier import frontier, knee
from niwaki.run.sweep.place import Place

SCHEMA = 1
DENSE = "dense"
_COUNTED = ("params", "flops", "size_bytes", "zeros")


def summary(sweep: Sweep, place: Place, key: dict[str, str], results: dict[str, Result]) -> dict[str, Any]:
    """What `sweep.json` holds; `results` are those of all points, by name."""
    first = next(iter(results.values()))
    metric = next(iter(first.dense["quality"]), None)
    records = {DENSE: first.dense, **{name: result.pruned for name, result in results.items()}}
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "request": sweep_to_dict(sweep),
        "key": key,
        "data": first.data,
        "metric": metric,
        "dense": _counted(first.dense),
        "points": [_point(sweep, place, name, result) for name, result in results.items()],
    }
    if metric is not None:
        costs = {name: (record["size_bytes"], _loss(record, metric)) for name, record in records.items()}
        found |= {"frontier": frontier(costs), "knee": knee(costs)}
    return found | {"timed": _timed(results, records, metric)}


def _point(sweep: Sweep, place: Place, name: str, result: Result) -> dict[str, Any]:
    point = next(point for point in sweep.points if point.name == name)
    weights = hashlib.sha256()
    for path in weight_files(place.point(point)):
        weights.update(path.read_bytes())
    return {
        "name": name,
        "method": result.stages[0]["name"],
        "budget": result.stages[0]["budget"],
        "seed": point.recipe.seed,
        **_counted(result.pruned),
        "dense_flops": result.dense["flops"],
        "fidelity": result.fidelity,
        "sha256": weights.hexdigest(),
        "warnings": result.warnings,
    }


def _counted(record: dict[str, Any]) -> dict[str, Any]:
    """What of a model does not differ from one run to the next."""
    return {"quality": record["quality"], **{name: record[name] for name in _COUNTED}}


def _loss(record: dict[str, Any], metric: str) -> float:
    """The quality of a model as a number that is to be small."""
    value = record["quality"][metric]
    return value if lower_is_better(metric) else -value


def _timed(results: dict[str, Result], records: dict[str, dict[str, Any]], metric: str | None) -> dict[str, Any]:
    """What the clock said: latencies, and for each way of running the frontier of time, size and quality, and its knee.

    The time of a model is its part of the dense model's, which was timed in turn with it.
    """
    first = next(iter(results.values())).latency
    # Rows of another seed may be too long for one way: what all were timed by can be compared.
    ways = [x for x in first if isinstance(first[x], dict) and all(x in each.latency for each in results.values())]
    found: dict[str, Any] = {
        "latency": {name: result.latency for name, result in results.items()},
        "seconds": {name: result.run["seconds"] for name, result in results.items()},
    }
    if metric is None:
        return found
    times = {way: {DENSE: 1.0, **{name: 1 / x.latency[way]["speedup"] for name, x in results.items()}} for way in ways}
    losses = {name: _loss(record, metric) for name, record in records.items()}
    sizes = {name: record["size_bytes"] for name, record in records.items()}
    return found | {
        "frontier": {way: frontier({x: (times[way][x], sizes[x], losses[x]) for x in records}) for way in ways},
        "knee": {way: knee({x: (times[way][x], losses[x]) for x in records}) for way in ways},
    }


def check_pick(conditions: tuple[Condition, ...]) -> None:
    """Refuse, before any work, to pick by a figure that every worse model holds.

    Raises:
        RequestError: at least a share of the dense model's figure is asked of one that is better when it is lower.
    """
    for condition in conditions:
        if lower_is_better(condition.name) and condition.at_least and condition.of_dense:
            rule = f"pick must bound {condition.name} from above, which is better when it is lower"
            raise RequestError(f"{rule} ('{condition.name} <= 1.01 * dense'), got >= {condition.number:g} * dense")


def check_names(conditions: tuple[Condition, ...], quality: Iterable[str], likeness: Iterable[str]) -> None:
    """Refuse to pick by what is not measured: `quality` and `likeness` are the names that are, beside what is counted.

    Raises:
        RequestError: listing those that can be named. A share of the dense model's cannot be of how alike the two are.
    """
    of_dense = {*quality, *_COUNTED}
    of_points = {*of_dense, *likeness}
    for condition in conditions:
        known = of_dense if condition.of_dense else of_points
        if condition.name not in known:
            raise RequestError(f"pick must name one of {', '.join(sorted(known))}, got {condition.name!r}")


def picked(conditions: tuple[Condition, ...], found: dict[str, Any]) -> str:
    """The name of the smallest point that holds all conditions: fewest bytes, then fewest parameters that are not zero.

    Raises:
        RequestError: a name that was not measured; no point holds, with the one that comes nearest.
    """
    dense = _flat(found["dense"])
    points = {point["name"]: {**point["fidelity"], **_flat(point)} for point in found["points"]}
    check_names(conditions, found["dense"]["quality"], found["points"][0]["fidelity"])
    beside = {point["name"]: {**dense, "flops": point["dense_flops"]} for point in found["points"]}
    misses = {name: max(_miss(each, point, beside[name]) for each in conditions) for name, point in points.items()}
    holding = [point for point in found["points"] if misses[point["name"]] <= 0]
    if not holding:
        name = min(misses, key=lambda name: misses[name])
        told = ", ".join(f"{each.name} {points[name][each.name]:.4g}" for each in conditions)
        raise RequestError(f"pick must hold for at least one point, got none; the nearest is {name} with {told}")
    return min(holding, key=lambda x: (x["size_bytes"], x["params"] - x["zeros"], x["name"]))["name"]


def _flat(record: dict[str, Any]) -> dict[str, float]:
    return {**record["quality"], **{name: record[name] for name in _COUNTED}}


def _miss(condition: Condition, point: dict[str, float], dense: dict[str, float]) -> float:
    """How far a point is from holding a condition, 0 or less where it holds."""
    value, wanted = point[condition.name], condition.number * (dense[condition.name] if condition.of_dense else 1.0)
    more, less = (value, wanted) if condition.at_least else (wanted, value)
    return 0.0 if reaches(more, less) else (less - more) / (abs(wanted) or 1.0)
