"""The tables of the page: results as rows of text."""

from __future__ import annotations

from typing import Any

from niwaki.report.figures import counted, ratio, shown
from niwaki.report.headline import bytes_shown, name_of, spans, ways
from niwaki.results import Result

Rows = list[list[str]]


def figures_rows(result: Result) -> Rows:
    """Quality, likeness and counts of both sides."""
    rows = [
        [name, shown(result.dense, name), shown(result.pruned, name), f"{result.pruned['quality'][name] - value:+.4f}"]
        for name, value in result.dense["quality"].items()
    ]
    rows += [[f"{name} to dense", "", f"{value:.4f}", ""] for name, value in result.fidelity.items()]
    for name in [*counted(result), "zeros"]:
        value, found = result.dense[name], result.pruned[name]
        rows.append([name, f"{value:,.0f}", f"{found:,.0f}", ratio(found, value)])
    return rows


def site_rows(result: Result) -> Rows:
    """What was pruned of every site."""
    return [
        [
            site["name"],
            f"{site['kept']:,}",
            f"{site['total']:,}",
            f"{100 * site['ratio']:.1f} %",
            f"{site['importance']:.4g}",
        ]
        for site in result.layers
    ]


def extreme_rows(sites: list[dict[str, Any]]) -> Rows:
    """A few sites."""
    return [[x["name"], f"{x['kept']:,} / {x['total']:,}", f"{100 * x['ratio']:.1f} %"] for x in sites]


def score_rows(plot: dict[str, Any]) -> Rows:
    """A score by layer."""
    columns = [plot["layers"], *plot["lines"].values()]
    return [[str(layer), *(f"{value:.4g}" for value in values)] for layer, *values in zip(*columns, strict=True)]


def by_name_rows(behaviour: dict[str, Any]) -> Rows:
    """F1 of each class, label or type."""
    return [
        [
            row["name"],
            f"{row['count']:,}",
            *(f"{row[side]:.4f}" for side in ("dense", "pruned")),
            f"{row['pruned'] - row['dense']:+.4f}",
        ]
        for row in behaviour["by_name"]
    ]


def position_rows(behaviour: dict[str, Any]) -> Rows:
    """Loss by position."""
    return [
        [
            f"{row['first']} to {row['last']}",
            f"{row['tokens']:,}",
            *(f"{row[side]:.4f}" for side in ("dense", "pruned")),
        ]
        for row in behaviour["positions"]
    ]


def token_rows(behaviour: dict[str, Any]) -> Rows:
    """Tokens that got worse; white space is written out."""
    return [
        [
            repr(row["token"])[1:-1].replace(" ", "␣"),
            f"{row['count']:,}",
            *(f"{row[side]:.3f}" for side in ("dense", "pruned")),
            f"{row['pruned'] - row['dense']:+.3f}",
        ]
        for row in behaviour["tokens"]
    ]


def way_rows(result: Result) -> Rows:
    """Latency of each way."""
    return [
        [
            way["name"],
            f"{way['dense_ms']:.1f}",
            f"{way['pruned_ms']:.1f}",
            f"{way['speedup']:.2f}x",
            f"{way['low']:.2f} to {way['high']:.2f}" if way["low"] != way["high"] else "",
        ]
        for way in ways(result)
    ]


def time_rows(result: Result) -> list[tuple[str, float, str, str]]:
    """Name, seconds, and passes of each stage; last what is none: reading, measuring, writing."""
    rows = [
        (stage["name"], stage["seconds"], f"{stage['forward_passes']:.3g}", f"{stage['backward_passes']:.3g}")
        for stage in result.stages
    ]
    rest = max(0.0, result.run["seconds"] - sum(seconds for _, seconds, _, _ in rows))
    return [*rows, ("reading, measuring, writing", rest, "", "")]


def tried_table(stage: dict[str, Any]) -> tuple[str, Rows]:
    """Of a stage that searched its budget: what the table says, and its rows, one a try, the heads first."""
    search = stage["keep_quality"]
    budget, metric = stage["budget"]["kind"], search["metric"]
    rows = [
        [f"{tried[budget]:.4f}", f"{tried[metric]:.4f}", f"{tried['share']:.4f}", "yes" if tried["kept"] else "no"]
        for tried in search["tries"]
    ]
    told = f"Budgets tried on {search['rows']:,} held-out rows of the training data; dense {search['dense']:.4f}"
    return told, [[budget, metric.replace("_", " "), "share of dense", f"keeps {search['share']:g}"], *rows]


def course_rows(course: dict[str, Any]) -> Rows:
    """What each update of the masks did."""
    return [
        [
            f"{row['step']:,}",
            f"{row['sparsity']:.4f}",
            *(f"{row[name]:,.0f}" for name in ("dropped", "grown", "regrown")),
            f"{row['distance']:.4f}",
        ]
        for row in course["rows"]
    ]


def data_rows(result: Result) -> list[tuple[str, str]]:
    """Each split: where it is from, how many rows, its hash."""
    splits = {**result.data, **result.data.get("tasks", {})}
    splits.pop("tasks", None)
    return [
        (split, ", ".join(f"{name} {found[name]}" for name in ("path", "rows", "split", "sha256") if found.get(name)))
        for split, found in splits.items()
    ]


def side_heads(results: list[Result]) -> list[str]:
    """Headings of the table of several results, with the usual metric of the first, or how alike without one."""
    told = [span["name"] for span in spans(results[0])[:1]] or [f"{name} to dense" for name in results[0].fidelity]
    return ["result", *told, "speed-ups", "weights", "parameters", "FLOPs", "zeros"]


def side_rows(results: list[Result]) -> Rows:
    """A row for each result, by its number."""
    rows = []
    for number, result in enumerate(results, 1):
        quality = []
        for span in spans(results[0])[:1]:
            mine = next((found for found in spans(result) if found["name"] == span["name"]), None)
            quality = [_with_interval(mine["pruned"]) if mine else ""]
        if not spans(results[0]):
            alike = (result.fidelity.get(name) for name in results[0].fidelity)
            quality = ["" if value is None else f"{value:.4f}" for value in alike]
        pruned, dense = result.pruned, result.dense
        rows.append(
            [
                f"{number}. {name_of(result)}",
                *quality,
                ", ".join(f"{way['name']} {way['speedup']:.2f}x" for way in ways(result)),
                bytes_shown(pruned["size_bytes"]),
                *(ratio(pruned[name], dense[name]) for name in ("params", "flops")),
                f"{pruned['zeros']:,.0f}",
            ]
        )
    return rows


def _with_interval(side: dict[str, Any]) -> str:
    span = f" ({side['low']:.4f} to {side['high']:.4f})" if side["low"] is not None else ""
    return f"{side['value']:.4f}{span}"
