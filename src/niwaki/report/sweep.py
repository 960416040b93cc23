"""The points of a sweep in lines: what each is worth, and which of them are on the frontier."""

from __future__ import annotations

from typing import Any


def sweep_lines(found: dict[str, Any]) -> list[str]:
    """The content of a `sweep.json` for a terminal: a line for the dense model and for each point."""
    metric, timed = found["metric"], found["timed"]
    width = max(len(point["name"]) for point in found["points"])
    lines = []
    for point in ({"name": "dense", "fidelity": {}, **found["dense"]}, *found["points"]):
        name = point["name"]
        told = {metric: point["quality"][metric]} if metric else point["fidelity"]  # without labels it is all there is
        cells = [f"{name:{width}}", *(f"{what} {value:.4f}" for what, value in told.items())]
        cells.append(f"{point['size_bytes'] / 1e6:7.1f} MB")
        for way, timing in timed["latency"].get(name, {}).items():
            if isinstance(timing, dict):
                cells.append(f"{way} {timing['speedup']:5.2f}x")
        cells += [f"frontier of {way}" for way, names in timed.get("frontier", {}).items() if name in names]
        cells += [f"knee of {way}" for way, knee in timed.get("knee", {}).items() if name == knee]
        cells += ["picked"] * (name == found["picked"])
        lines.append("  ".join(cells))
    return lines
