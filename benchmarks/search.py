"""Widths or zeros searched on the true divergence: does what a search finds on some rows hold on others?

    python benchmarks/search.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv
    python benchmarks/search.py ... --flops --sparsity 0.8

The search is that of EvoPress (Sieberling et al., ICML 2025) with nothing approximated: in every generation the scores
of some sites, or the losses along the curves of some linears, are multiplied by numbers that are drawn, so that units
or zeros move between them and the budget stays exact; each child is cut and refitted whole (zeros: no layer learns, for
time); of the parent and its children the one lives from which the dense model diverges least on `--searched` rows that
no calibration saw. `others` is the divergence on as many rows again that neither calibration nor search saw. So a child
costs a refit and a pass, which `niwaki.apply_` tells.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import random
from typing import Any

import niwaki
from common import Bench, Divergence, arguments, divergence_on, held_out_rows, is_done, note, resumed
from niwaki.adapters import merge_
from niwaki.methods.unit_plan import UnitPlan
from niwaki.methods.weight_plan import WeightPlan

SITES, SPREAD = 2, 0.5
"""How many sites (linears: twice as many) a child changes, and by what: a factor's logarithm has this deviation."""


def main() -> None:
    parser = arguments("search")
    parser.add_argument("--flops", type=float, nargs="*", default=[0.5, 0.3, 0.2])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[])
    parser.add_argument("--searched", type=int, default=1024, help="rows that the search looks at")
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--children", type=int, default=4)
    asked = parser.parse_args()
    bench = Bench.of(asked)
    spare = held_out_rows(bench, asked, 2 * asked.searched)
    searched, others = (divergence_on(bench, part) for part in (spare[: asked.searched], spare[asked.searched :]))
    found = {**resumed(asked), "dense": bench.quality(bench.model())}
    for seed in asked.seeds:
        budgets = [{"flops": share} for share in asked.flops] + [{"sparsity": share} for share in asked.sparsity]
        for budget in budgets:
            run = {**budget, "seed": seed, "rows": asked.rows, "generations": asked.generations}
            if not is_done(found, run):
                note(found, {**run, **search(bench, budget, seed, asked, searched, others)}, asked.out)


def search(
    bench: Bench,
    budget: dict[str, float],
    seed: int,
    asked: argparse.Namespace,
    searched: Divergence,
    others: Divergence,
) -> dict[str, Any]:
    """What the default and what the search ends with, each on the rows of the search, on others, and in quality."""
    data, draw = list(bench.batches(asked.rows, seed)), random.Random(seed)
    dense = bench.model()
    plan = niwaki.plan(dense, config_of(budget, seed), data)
    names = list(plan.scores if isinstance(plan, UnitPlan) else plan.profiles)
    passes = {"plan": plan.passes.forward, "search": 0.0}

    def cut(factors: dict[str, float]) -> Any:
        """The model pruned by the scores, or losses, times the exponentials of these factors."""
        model = copy.deepcopy(dense)
        result = niwaki.apply_(model, moved(plan, factors), data)
        passes["search"] += result.forward_passes
        merged = merge_(model)
        niwaki.remove_masks_(merged)
        return merged

    def measured(model: Any) -> dict[str, Any]:
        return {"searched": searched(model), "others": others(model), "quality": bench.quality(model)}

    parent = dict.fromkeys(names, 0.0)
    start = measured(cut(parent))
    best, course = start["searched"], [start["searched"]]
    for _ in range(asked.generations):
        children = []
        for _ in range(asked.children):
            child = dict(parent)
            for name in draw.sample(sorted(child), SITES if "flops" in budget else 2 * SITES):
                child[name] += draw.gauss(0.0, SPREAD)
            children.append((searched(cut(child)), child))
        fitness, child = min(children, key=lambda pair: pair[0])
        if fitness < best:
            best, parent = fitness, child
        course.append(best)
        print(f"{budget} {seed}: {course}", flush=True)
    return {"start": start, "end": measured(cut(parent)), "course": course, "passes": passes, "factors": parent}


def config_of(budget: dict[str, float], seed: int) -> niwaki.Structured | niwaki.LayerAdaptive:
    """What is asked for."""
    if "flops" in budget:
        return niwaki.Structured(flops=budget["flops"], seed=seed)
    return niwaki.LayerAdaptive(sparsity=budget["sparsity"], seed=seed, reconstruct="none")


def moved(plan: niwaki.Plan, factors: dict[str, float]) -> niwaki.Plan:
    """The plan for the same budget in which each site has its scores, each linear its losses, times a factor."""
    if isinstance(plan, UnitPlan):
        scores = {name: score * math.exp(factors[name]) for name, score in plan.scores.items()}
        return dataclasses.replace(plan, scores=scores).at(flops=plan.config.budget[1])
    assert isinstance(plan, WeightPlan)
    profiles = {
        name: dataclasses.replace(
            profile, curve=tuple((zeros, loss * math.exp(factors[name])) for zeros, loss in profile.curve)
        )
        for name, profile in plan.profiles.items()
    }
    changed = dataclasses.replace(plan, profiles=profiles)
    return dataclasses.replace(changed, zeros=changed.zeros_for(plan.config.budget[1]))


if __name__ == "__main__":
    main()
