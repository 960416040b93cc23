"""Importance only: `scores.json`, of every head, neuron and linear. Nothing is pruned."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import Any

from niwaki.anatomy import sites_of
from niwaki.config import LayerAdaptive, Scoring, Structured
from niwaki.methods.prune import score
from niwaki.run.at_hand import at_hand
from niwaki.run.record import Clock


def run_scoring(request: Scoring, quiet: bool = False) -> dict[str, Any]:
    """Score a model as it stands and write `scores.json` into the folder of the request; returns what it holds.

    `layers` has, for each site, its share of all scores (`importance`) and the list of its units' `scores`; `linears`,
    for each linear, its `importance` by the layer score and the mean score of the weights of each output.

    Raises:
        RequestError: the request is wrong. WorkError: a statistic is not finite.
    """
    clock = Clock()
    with at_hand(request, quiet) as here:
        inputs, batches, progress = here.inputs, here.batches, not here.quiet
        units = {name: getattr(request, name) for name in ("head_score", "neuron_score", "head_unit", "seed")}
        config = Structured(flops=1.0, **units)
        names = {name: getattr(request, name) for name in ("layer_score", "weight_score", "granularity", "seed")}
        scores = score(inputs.model, batches, config, progress=progress)
        # An allocation that looks at the importance of layers: nothing is allocated.
        by_linear = LayerAdaptive(sparsity=0.0, allocation="inverse-importance", **names)
        linears = score(inputs.model, batches, by_linear, progress=progress)
        found = {
            "schema": 1,
            "run": clock.environment(request),
            "request": dataclasses.asdict(request),
            "data": {"train": inputs.described(here.train, "train")},
            "layers": [
                {
                    "name": site.name,
                    "kind": site.kind,
                    "importance": scores.importance[site.name],
                    "total": site.units,
                    "scores": scores[site.name],
                }
                for site in sites_of(inputs.model, config.by_query_head)
            ],
            "linears": [
                {
                    "name": name,
                    "importance": linears.importance[name],
                    "total": len(values),
                    "lowest": min(values),
                    "median": statistics.median(values),
                    "mean": statistics.fmean(values),
                    "highest": max(values),
                    "scores": values,
                }
                for name, values in linears.items()
            ],
        }
        (here.folder / "scores.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return found
