"""What is left of each site after all stages, of what the dense model had."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

from niwaki.results import SiteResult, StageResult


def layers_left(stages: list[StageResult], sizes: dict[str, int], kept: dict[str, int]) -> list[dict[str, Any]]:
    """The `layers` of `result.json`: every site that a stage pruned, in the order of the stages.

    Totals are those of the dense model, importances those of the last stage that pruned the site. `sizes` are the
    weights of the dense model's linears and `kept` those that are left at the end in linears that are, by name: a stage
    that cuts a linear leaves fewer than the stage before it masked, or none.
    """
    found: dict[str, list[SiteResult]] = {}
    for stage in stages:
        for site in stage.layers:
            found.setdefault(site.name, []).append(site)
    return [_layer(_with_heads(_over_stages(results), results), sizes, kept) for results in found.values()]


def _over_stages(results: list[SiteResult]) -> SiteResult:
    """The last of a site's results, its total as that result counts the units that came into the first stage.

    One stage may count query heads where another counted groups of them: what is multiplied is the share that each
    left.
    """
    total = float(results[-1].total)
    for result in results[:-1]:
        if not result.kept:
            return dataclasses.replace(results[-1], total=results[0].total)
        total *= result.total / result.kept
    return dataclasses.replace(results[-1], total=round(total))


def _with_heads(site: SiteResult, results: list[SiteResult]) -> SiteResult:
    """The heads of the dense model that are left, and what they were worth, where every stage counted the same."""
    units = results[0].units
    for before, after in pairwise(results):
        if units is None or after.units is None or after.total != before.kept:
            return dataclasses.replace(site, units=None, scores=None)
        units = tuple(units[index] for index in after.units)
    return dataclasses.replace(site, units=units, scores=results[0].scores)


def _layer(site: SiteResult, sizes: dict[str, int], kept: dict[str, int]) -> dict[str, Any]:
    if site.kind == "linear":
        site = dataclasses.replace(site, total=sizes[site.name], kept=kept.get(site.name, 0))
    told = {name: value for name, value in dataclasses.asdict(site).items() if value not in (None, {})}
    return {**told, "ratio": site.ratio}
