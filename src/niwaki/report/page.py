"""One static HTML page: what was asked, what was cut where, what it cost and what changed.

All of it is made of results alone. All text is escaped; there is no script and nothing is fetched. The words stand in
`page.html.jinja`, their look in `style.css`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from niwaki.evaluate.quality import lower_is_better
from niwaki.report.course import course_table
from niwaki.report.engine import engine_rows
from niwaki.report.figures import provenance, ratio
from niwaki.report.headline import (
    bytes_shown,
    compared,
    fraction_of_scale,
    frontier,
    name_of,
    spans,
    ways,
)
from niwaki.report.house import extremes, house_plan, score_curves
from niwaki.report.plots import lines, points, shares
from niwaki.report.request import asked, command, trains
from niwaki.report.rows import (
    by_name_rows,
    course_rows,
    data_rows,
    extreme_rows,
    figures_rows,
    position_rows,
    score_rows,
    side_heads,
    side_rows,
    site_rows,
    time_rows,
    token_rows,
    tried_table,
    way_rows,
)
from niwaki.report.stages import stage_lines
from niwaki.results import Result

_START = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Niwaki report</title>\n'
_TABLES = (by_name_rows, course_rows, data_rows, extreme_rows, figures_rows, position_rows, score_rows)
_TABLES += (side_heads, side_rows, site_rows, time_rows, token_rows, tried_table, way_rows)
_WORDS = {
    "right_words": (
        ("both", "right in both"),
        ("dense_only", "right in dense alone"),
        ("pruned_only", "right in pruned alone"),
        ("neither", "wrong in both"),
    ),
    "name_words": {"class": "class", "labels": "label", "entities": "type of entity", "tags": "tag"},
    "course_words": {
        "sparsity": "share of zeros after each update",
        "churn": "weights dropped and grown by each update, and those that had been there before",
        "distance": "share of the mask that is not as it was first",
    },
}


def is_page(path: Path) -> bool:
    """Whether a file is a page that Niwaki wrote."""
    start = _START.encode()
    with path.open("rb") as file:
        return file.read(len(start)) == start


def page(results: list[Result]) -> str:
    """The page for one or several results: side by side first, then each by itself."""
    environment = Environment(
        loader=PackageLoader("niwaki.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    said = (provenance, ratio, stage_lines, course_table, engine_rows, asked, command, house_plan, extremes)
    said += (trains, bytes_shown, fraction_of_scale, name_of, spans, ways, compared, lower_is_better, *_TABLES)
    names: dict[str, Any] = {function.__name__: function for function in said} | _WORDS
    names |= {"plots_of": _plots, "frontiers": _frontiers, "same_data": _same_data, "sections": _sections}
    names |= {"numbered": list(enumerate(results, 1))}
    style = Markup(environment.get_template("style.css").render())
    return _START + environment.get_template("page.html.jinja").render(results=results, style=style, **names)


def _sections(result: Result) -> list[tuple[str, str]]:
    """Id and name of each section that the page of one result has."""
    timed = bool(result.stages and "seconds" in result.stages[0] and result.run.get("seconds"))
    found = [
        ("request", "Request", True),
        ("house", "House plan", bool(house_plan(result))),
        ("depth", "Depth", bool(score_curves(result))),
        ("behaviour", "Behaviour", bool(result.behaviour)),
        ("latency", "Latency", bool(ways(result))),
        ("course", "Masks", any(stage.get("course") for stage in result.stages)),
        ("time", "Time", timed),
        ("again", "Do it again", True),
    ]
    return [(name, words) for name, words, there in found if there]


def _plots(result: Result) -> dict[str, Any]:
    """The drawings of one result, by the section that they stand in; those of which it has no figures are left out."""
    found: dict[str, Any] = {}
    found["scores"] = [
        {"score": score, "layers": layers, "lines": named, "svg": lines(score, "layer", layers, named, score)}
        for score, (layers, named) in score_curves(result).items()
    ]
    timed = ways(result)
    if timed:
        rows = [(1 / way["high"], 1 / way["speedup"], 1 / way["low"]) for way in timed]
        labels = [way["name"] for way in timed]
        found["latency"] = shares("Measured latency", labels, rows, "share of the dense time")
    courses = [stage for stage in result.stages if stage.get("course")]
    found["courses"] = [{"stage": stage["name"], "rows": stage["course"], **_course(stage)} for stage in courses]
    positions = result.behaviour.get("positions")
    if positions:
        sides = {side: [place[side] for place in positions] for side in ("dense", "pruned")}
        firsts = [place["first"] for place in positions]
        found["positions"] = lines("Loss by position", "token of a window", firsts, sides, "nats a token")
    return found


def _course(stage: dict[str, Any]) -> dict[str, Markup]:
    """Sparsity and churn over the steps of a dynamic stage."""
    rows = stage["course"]
    steps = [row["step"] for row in rows]
    moved = {name: [row[name] / stage["weights"] for row in rows] for name in ("dropped", "grown", "regrown")}
    over = "optimizer step"
    zeros, apart = ({name: [row[name] for row in rows]} for name in ("sparsity", "distance"))
    return {
        "sparsity": lines("Sparsity", over, steps, zeros, "share of zeros", steps=True),
        "churn": lines("Mask churn", over, steps, moved, "share of the weights"),
        "distance": lines("Distance", over, steps, apart, "share off the first mask"),
    }


def _same_data(results: list[Result]) -> bool:
    """Whether all were measured on the same evaluation data, as far as is known."""
    found = [(result.data.get("eval") or {}, result.recipe.get("data_config")) for result in results]
    return len({data.get("sha256") or (data.get("path"), data.get("split"), config) for data, config in found}) == 1


def _frontiers(results: list[Result]) -> list[dict[str, Any]]:
    """Quality over latency and over size of several results of one metric, with the first one's dense model.

    Latency is a share of that of the dense model which it was timed in turn with.
    """
    metric = next(iter(results[0].pruned["quality"]), None)
    if not _same_data(results) or metric is None or any(metric not in result.pruned["quality"] for result in results):
        return []
    sides = [results[0].dense, *(result.pruned for result in results)]
    quality = [side["quality"][metric] for side in sides]
    common = set.intersection(*({way["name"] for way in ways(result)} for result in results))
    planes = [
        (f"latency, {way}", "share of the dense latency", [1.0, *(1 / _speedup(result, way) for result in results)])
        for way in sorted(common)
    ]
    planes.append(("size", "megabytes of weights", [side["size_bytes"] / 1e6 for side in sides]))
    found = []
    for name, over, costs in planes:
        places, title = list(zip(costs, quality, strict=True)), f"{metric} over {name}"
        best = frontier(costs, [-value if lower_is_better(metric) else value for value in quality])
        found.append({"title": title, "svg": points(title, places, best, over, metric)})
    return found


def _speedup(result: Result, name: str) -> float:
    return next(way["speedup"] for way in ways(result) if way["name"] == name)
