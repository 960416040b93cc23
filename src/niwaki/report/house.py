"""The house plan: a row for each layer, what of it stayed and what went.

Heads are cells, neurons a bar of their number, linears a bar of the weights that are not zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from niwaki.results import Result


@dataclass
class Floor:
    """One layer: `heads` (None where they were not looked at one by one), `bars` by the name of what they are of."""

    layer: int
    heads: list[Head] | None = None
    bars: dict[str, Bar] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """One head: whether it stayed, and its place among all heads by importance, 0 to 100."""

    number: int
    stays: bool
    shade: int


@dataclass(frozen=True)
class Bar:
    """So many of so many."""

    kept: int
    total: int

    @property
    def percent(self) -> float:
        """What stayed, in percent; all of nothing."""
        return 100 * self.kept / self.total if self.total else 100.0


def house_plan(result: Result) -> list[Floor]:
    """The layers that something was asked of, in order; empty where nothing was pruned."""
    floors: dict[int, Floor] = {}
    shades = _shades(result.layers)
    for site in result.layers:
        place = re.fullmatch(r"layer\.(\d+)\.(.+)", site["name"])
        if place is None:
            continue
        floor = floors.setdefault(int(place[1]), Floor(int(place[1])))
        stayed = site.get("units")
        if site["kind"] == "attention" and stayed is not None:
            shade = shades.get(site["name"]) or [0] * site["total"]
            floor.heads = [Head(number, number in stayed, shade[number]) for number in range(site["total"])]
        name = {"attention": "heads", "ffn": "neurons"}.get(site["kind"], place[2])
        floor.bars[name] = Bar(site["kept"], site["total"])
    return [floors[layer] for layer in sorted(floors)]


def _shades(layers: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Site -> the place of each of its heads among all, by score, 0 to 100."""
    known = {site["name"]: site["scores"] for site in layers if len(site.get("scores") or ()) == site["total"] > 0}
    order = sorted((score, name, number) for name, scores in known.items() for number, score in enumerate(scores))
    shades = {name: [0] * len(scores) for name, scores in known.items()}
    for place, (_, name, number) in enumerate(order):
        shades[name][number] = round(100 * place / max(1, len(order) - 1))
    return shades


def extremes(result: Result, count: int = 3) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The most pruned and the least pruned sites, neither in both."""
    ranked = sorted((site for site in result.layers if site["total"]), key=lambda site: -site["ratio"])
    count = min(count, len(ranked) // 2)
    return ranked[:count], ranked[::-1][:count]


def score_curves(result: Result) -> dict[str, tuple[list[int], dict[str, list[float]]]]:
    """Score -> layers, and for each part of a layer its value in each of them; parts that are not in all are left out.

    `importance` is what decided; others are what the same pass told.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}
    for site in result.layers:
        place = re.fullmatch(r"layer\.(\d+)\.(.+)", site["name"])
        if place is not None:
            for score, value in {"importance": site["importance"], **site.get("other_scores", {})}.items():
                values.setdefault(score, {}).setdefault(place[2], {})[int(place[1])] = value
    found = {}
    for score, parts in values.items():
        layers = sorted({layer for part in parts.values() for layer in part})
        whole = {name: [part[layer] for layer in layers] for name, part in parts.items() if len(part) == len(layers)}
        if whole and len(layers) > 1 and any(any(line) for line in whole.values()):
            found[score] = layers, _once(whole)
    return found


def _once(named: dict[str, list[float]]) -> dict[str, list[float]]:
    """One line where all parts of a layer have the same value."""
    lines = list(named.values())
    return {"layer": lines[0]} if len(lines) > 1 and all(line == lines[0] for line in lines) else named
