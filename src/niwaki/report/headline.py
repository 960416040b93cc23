"""What stands first on the page: quality, speed and size, dense beside pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from niwaki.results import Result


def name_of(result: Result) -> str:
    """What a result is called: the end of its model's name, and the folder it was written to."""
    model = Path(str(result.recipe.get("model", "model"))).name
    out = Path(str(result.recipe.get("out", ""))).name
    return f"{model} → {out}" if out and out != model else model


def compared(result: Result) -> bool:
    """Whether there are two models to tell apart: an evaluation of one alone holds it against itself."""
    return bool(result.stages) or bool(result.recipe.get("against"))


def ways(result: Result) -> list[dict[str, Any]]:
    """Each way that both models were timed: its `name`, milliseconds, `speedup`, and the quartiles `low` and `high`.

    Results from before the quartiles were written have the median in their place.
    """
    found = []
    for way, timing in result.latency.items():
        if isinstance(timing, dict):
            low, high = timing.get("quartiles", {}).get("speedup", (timing["speedup"],) * 2)
            found.append({"name": name_of_way(way, timing), "low": low, "high": high, **timing})
    return found


def spread(way: dict[str, Any]) -> str:
    """The middle half of the ratios of the pairs, in brackets; nothing where it is not known."""
    return f" ({way['low']:.2f} to {way['high']:.2f})" if way["low"] != way["high"] else ""


def how_measured(result: Result) -> str:
    """How long the rows are that FLOPs and latency are of, and what a speed-up is; nothing where there is none."""
    if not ways(result):
        return ""
    length = result.latency.get("seq_len")
    what = "latency is" if result.recipe.get("latency_length") else "flops and latency are"
    rows = f"{what} of rows of {length} tokens; " if length else ""
    return (
        f"{rows}a speed-up is the median of pairs timed in turn, with its middle half, and not the ratio of the medians"
    )


def name_of_way(way: str, timing: dict[str, Any]) -> str:
    """As a person reads it, with the tokens of a row where they are others than at the top of `latency`."""
    return way.replace("_", " ") + (f", {timing['seq_len']} tokens a row" if "seq_len" in timing else "")


def spans(result: Result) -> list[dict[str, Any]]:
    """Each metric: its `name`, and of both sides the value with its interval (None where it has none)."""
    found = []
    for name in result.dense["quality"]:
        sides = []
        for side in (result.dense, result.pruned):
            value = side["quality"][name]
            error = side.get("stderr", {}).get(name)
            span = (value - 1.96 * error, value + 1.96 * error) if error is not None else None
            span = side.get("interval", {}).get(name, span)
            sides.append({"value": value, "low": span[0] if span else None, "high": span[1] if span else None})
        found.append({"name": name.replace("_", " "), "dense": sides[0], "pruned": sides[1]})
    return found


def fraction_of_scale(span: dict[str, Any], value: float) -> float:
    """Where a value stands, in percent, on a scale that holds both intervals of a metric with some room."""
    ends = [side[key] for side in (span["dense"], span["pruned"]) for key in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    room = 0.12 * (high - low) or 1.0
    return 100 * (value - low + room) / (high - low + 2 * room)


def frontier(costs: list[float], worths: list[float]) -> list[int]:
    """Those that no other is both cheaper and better than, from the cheapest on."""
    found: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -worths[index])):
        if not found or worths[index] > worths[found[-1]]:
            found.append(index)
    return found


def bytes_shown(count: float) -> str:
    """Bytes in the unit that suits them, of a thousand each."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit takes all")
