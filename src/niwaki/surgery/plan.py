"""The plan of a cut: which units of each site stay; printed before anything is cut."""

from __future__ import annotations

from rich.table import Table
from torch import Tensor

from niwaki.anatomy import Site

Plan = dict[str, Tensor]
"""Site name -> sorted indices of the units that stay."""


def importances(scores: dict[str, Tensor]) -> dict[str, float]:
    """Each site's share of all scores, a number in [0, 1]."""
    total = sum(float(score.sum()) for score in scores.values()) or 1.0
    return {name: float(score.sum()) / total for name, score in scores.items()}


def plan_table(sites: list[Site], scores: dict[str, Tensor], plan: Plan) -> Table:
    """One row a layer: heads and neurons kept of total, and the importance (share of all scores) of each part."""
    kinds = {"attention": "heads", "ffn": "neurons"}
    kept = {kind: sum(len(plan[site.name]) for site in sites if site.kind == kind) for kind in kinds}
    total = {kind: sum(site.units for site in sites if site.kind == kind) for kind in kinds}
    title = ", ".join(f"{kept[kind]} of {total[kind]} {name}" for kind, name in kinds.items())
    table = Table("layer", "heads", "importance", "neurons", "importance", title=f"What stays: {title}")
    share = importances(scores)
    by_layer: dict[int, list[str]] = {}
    for site in sites:
        cells = [f"{len(plan[site.name])} / {site.units}", f"{share[site.name]:.3f}"]
        by_layer.setdefault(site.layer, [str(site.layer)]).extend(cells)
    for cells in by_layer.values():
        table.add_row(*cells)
    return table
