"""The result as a table for a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from niwaki.report.headline import compared, how_measured, spread, ways
from niwaki.report.rows import figures_rows
from niwaki.report.stages import stage_lines
from niwaki.results import Result


def result_table(result: Result) -> Table:
    """Quality, counts and latency of dense and pruned, side by side; of one model alone, its own."""
    two = compared(result)
    title = "; ".join(stage_lines(result.stages)) or "Measured"
    table = Table(title=escape(title), caption=how_measured(result))
    for number, head in enumerate(("", "dense", "pruned", "change") if two else ("", "")):
        table.add_column(head, justify="right" if number else "left")
    rows = figures_rows(result)
    for way in ways(result):
        sides = [f"{way[side]:.1f}" for side in ("dense_ms", "pruned_ms")]
        rows.append([f"latency, {way['name']} (ms)", *sides, f"{way['speedup']:.2f}x as fast{spread(way)}"])
    for name, dense, pruned, change in rows:
        table.add_row(*map(escape, (name, dense, pruned, change) if two else (name, pruned)))
    return table
