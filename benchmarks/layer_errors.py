"""The error of each linear alone, `|XW - XW*|^2 / |XW|^2` over calibration tokens, by what chooses and by what fits.

    python benchmarks/layer_errors.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --rows 512 --seeds 0

All linears have the same sparsity, and the moments of the dense model, tokens weighted as `niwaki.observe.tokens` says.
`obs` is the sweep of SparseGPT, `obs, exact` the best values on its mask, `admm` those on the mask of ADMM, as
`--weight-score alps` has it but for rows that compete by what their errors cost.
`admm, swaps` goes on from there by 1-swaps (after SparseSwaps, 2025), in the linears of `--swapped` alone: the weights
that cost least go, those that gain most return, each with the rest of its row refitted exactly, as many at once as
make the whole better. It is here, not in the library, for what it costs.
"""

from __future__ import annotations

import time
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from common import Bench, arguments, is_done, note, resumed
from niwaki.adapters import effective_weight, merge_
from niwaki.config.patterns import Unstructured
from niwaki.numerics.solve import damp
from niwaki.observe import Need, observe
from niwaki.observe.moments import with_moments
from niwaki.repair.least_squares import DAMPING, Optimum, excess, on_mask
from niwaki.sparsify.admm import admm_mask
from niwaki.sparsify.obs import obs_factor, obs_prune

ROUNDS, ROWS_AT_ONCE = 8, 128


def solved(best: Optimum, zeros: int, name: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Way -> weight and mask `[out, in]`, and the seconds that it took."""
    target, started = best.weight.float(), time.perf_counter()
    found = {}

    def keep(way: str, weight: Tensor, mask: Tensor) -> None:
        found[way] = (weight, mask, time.perf_counter() - started)

    weight, mask = obs_prune(target, obs_factor(best.factor).float(), zeros, Unstructured(), name)
    keep("obs", weight.double(), mask)
    keep("obs, exact", on_mask(best, mask, weight), mask)
    moments = (best.factor @ best.factor.T).float()
    other = admm_mask(target, moments, weight, zeros, Unstructured(), name)
    keep("admm", on_mask(best, other, weight), other)
    return found


def swapped(best: Optimum, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and the mask that 1-swaps lead to."""
    moments = best.factor @ best.factor.T
    weight, share = on_mask(best, mask, weight), 0.5
    error = excess(best, weight)
    for _ in range(ROUNDS):
        cost, gain = costs_and_gains(best, moments, weight, mask)
        leaving, entering = cost.flatten().argsort(), gain.flatten().argsort(descending=True)
        paying = int((gain.flatten()[entering] > cost.flatten()[leaving]).sum())
        while paying and (count := int(paying * share)):
            other = mask.flatten().clone()
            other[leaving[:count]], other[entering[:count]] = False, True
            other = other.view_as(mask)
            found = on_mask(best, other, weight * other)
            if excess(best, found) < error:
                weight, mask, error = found, other, excess(best, found)
                break
            share /= 2
        else:
            break
    return weight, mask


def costs_and_gains(best: Optimum, moments: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the error rises by when a weight goes, and falls by when one returns, the rest of its row refitted."""
    residual = (best.weight - weight) @ moments
    cost, gain = torch.full_like(weight, float("inf")), torch.zeros_like(weight)
    for first in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        kept = mask[rows]
        size = kept.sum(1)
        columns = kept.float().argsort(dim=1, descending=True, stable=True)[:, : int(size.max())]
        real = torch.arange(columns.shape[1]) < size[:, None]
        among = moments[columns[:, :, None], columns[:, None, :]]
        among = torch.where(real[:, :, None] & real[:, None, :], among, torch.eye(columns.shape[1]).to(among))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(among))
        rise = weight[rows].gather(1, columns).square() / inverse.diagonal(dim1=1, dim2=2)
        cost[rows] = cost[rows].scatter(1, columns, torch.where(real, rise, float("inf")))
        beside = moments[columns] * real[:, :, None]
        own = moments.diagonal() - (beside * (inverse @ beside)).sum(1)
        gain[rows] = torch.where(kept, 0.0, residual[rows].square() / own.clamp_min(1e-12))
    return cost, gain


def main() -> None:
    parser = arguments("layer_errors")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.8, 0.9])
    parser.add_argument("--swapped", nargs="*", default=[], help="names of linears that are also swapped, at 0.8")
    asked = parser.parse_args()
    bench, found = Bench.of(asked), resumed(asked)
    for seed in asked.seeds:
        data, model = list(bench.batches(asked.rows, seed)), merge_(bench.model())
        statistics = observe(model, data, Need(token_sizes=True), seed=seed)
        for linear, own in with_moments(model, statistics, data, statistics.token_weights):
            moments = torch.as_tensor(own.linears[linear.name].moments).double()
            damped, weight = damp(moments, linear.name, DAMPING), effective_weight(linear.module).double()
            best = Optimum(weight, None, damped.factor, weight.new_zeros(weight.shape[1]), None)
            whole = excess(best, torch.zeros_like(weight))
            for sparsity in asked.sparsity:
                run: dict[str, Any] = {"linear": linear.name, "sparsity": sparsity, "seed": seed}
                if is_done(found, run):
                    continue
                made = solved(best, round(sparsity * linear.size), linear.name)
                if linear.name in asked.swapped and sparsity == 0.8:
                    started = time.perf_counter()
                    made["admm, swaps"] = (*swapped(best, *made["admm"][:2]), time.perf_counter() - started)
                error = {way: excess(best, one) / whole for way, (one, _, _) in made.items()}
                note(found, {**run, "error": error, "seconds": {way: one[2] for way, one in made.items()}}, asked.out)
    for sparsity in asked.sparsity:
        runs = [run["error"] for run in found["runs"] if run["sparsity"] == sparsity]
        told = {way: mean(run[way] for run in runs) for way in runs[0] if way != "admm, swaps"}
        ratio = {way: mean(run[way] / run["obs"] for run in runs) for way in told}
        print(f"| {sparsity:g} | " + " | ".join(f"{told[way]:.4f} ({ratio[way]:.2f})" for way in told) + " |")


if __name__ == "__main__":
    main()
