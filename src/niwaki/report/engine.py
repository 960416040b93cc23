"""Dense and pruned in an engine, as they are and rounded, as rows of text."""

from __future__ import annotations

from niwaki.results import Result


def engine_rows(result: Result) -> list[list[str]]:
    """The table, a row of headings first; empty where nothing was rounded."""
    rows = result.engines
    if not rows:
        return []
    metrics, ways = list(rows[0]["quality"]), list(rows[0]["latency"])
    tokens = [f"{way}, tokens/s" for way in ways]
    heads = ["", *metrics, "file MB", "memory MB", *(f"{way}, ms" for way in ways), *tokens]
    return [heads] + [
        [
            row["model"] + ("" if row["quantize"] == "none" else f" {row['quantize']}"),
            *(f"{row['quality'][name]:.4f}" for name in metrics),
            *(f"{row[name] / 1e6:.1f}" for name in ("size_bytes", "memory_bytes")),
            *(f"{row['latency'][way]['ms']:.1f}" for way in ways),
            *(f"{row['latency'][way]['tokens_per_second']:,.0f}" for way in ways),
        ]
        for row in rows
    ]
