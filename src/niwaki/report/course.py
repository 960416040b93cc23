"""How the model came through several stages: what was measured before the first and after each."""

from __future__ import annotations

from typing import Any

from niwaki.report.figures import shown
from niwaki.results import Result

COUNTED = ("params", "flops", "zeros", "size_bytes")


def course(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """The name and the record of each state of the model, in order; empty for one stage, which dense and pruned tell.

    Results that were written before stages had their own figures have none.
    """
    if len(result.stages) < 2 or not all("before" in stage and "after" in stage for stage in result.stages):
        return []
    after = [(f"after {stage['name']}", stage["after"]) for stage in result.stages]
    return [("as it came in", result.stages[0]["before"]), *after]


def course_table(result: Result) -> list[list[str]]:
    """The course as rows of text, a row of headings first; empty where there is none."""
    states = course(result)
    metrics = list(dict.fromkeys(name for _, record in states for name in record["quality"]))
    rows = [
        [name]
        + [shown(record, metric) if metric in record["quality"] else "" for metric in metrics]
        + [f"{record[key]:,.0f}" for key in COUNTED]
        for name, record in states
    ]
    return [["", *metrics, *COUNTED], *rows] if rows else []


def course_lines(result: Result) -> list[str]:
    """The course for a terminal, a line for each state."""
    return [
        f"{name}: {', '.join(f'{metric} {shown(record, metric)}' for metric in record['quality'])}, "
        f"{record['params']:,.0f} params, {record['flops']:,.0f} flops, {record['zeros']:,.0f} zeros"
        for name, record in course(result)
    ]
