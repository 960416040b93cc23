"""Linear by linear, bottom-up: the sums of the least squares that fit each to the dense model.

For a linear with input x in the pruned model (after a 1, for the bias), let t be what it should give: the dense
linear's output on the dense model's input; for the projections into the residual stream
`dense(residual + output) - pruned(residual)`, so that what earlier cuts did wrong is made good there too (K-prune, Park
et al., ICLR 2024, fits output projections so), wherever that sum is to be seen. What is done with the sums is in
`niwaki.repair.least_squares`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import BlockLinear, Site, evaluation_mode, layers_of, linears_of
from niwaki.observe import Batch, TokenWeights
from niwaki.observe.moments import gram
from niwaki.observe.stream import Stream, rebatch
from niwaki.progress import bar
from niwaki.repair.least_squares import Sums

REFIT_PASSES = 5.0
"""About as many forward passes over the data as one call runs, of both models together."""


@torch.no_grad()
def sequential_least_squares_(
    model: nn.Module,
    dense: nn.Module | None,
    data: Sequence[Batch],
    fit: Callable[[BlockLinear, Sums], None],
    *,
    only_writing: bool = False,
    rows: dict[str, Tensor] | None = None,
    weights: TokenWeights | None = None,
    targets: bool = True,
    progress: bool = False,
) -> None:
    """Call `fit(linear, sums)` for each linear of `model`, bottom-up; it may change the linear, the next sees that.

    Linears that see the same input are fitted to the same sums. Without `dense` that is `model` as it stands: each
    layer is copied before it is fitted, no more than one at a time. With `only_writing` those that write into the
    residual stream alone. `rows` names, by linear, the rows `[out]` of the dense linear that are still there. `weights`
    say how much each token matters; without `targets` no sums of targets are made. Both models are in evaluation mode
    meanwhile.
    """
    with evaluation_mode(model, dense or model), ExitStack() as stack:
        ours = linears_of(model, emptied=True)
        theirs = linears_of(dense, emptied=True) if dense is not None else []
        pruned_stream = stack.enter_context(Stream(model, data))
        dense_stream = stack.enter_context(Stream(dense or model, data)) if targets else None
        layers = range(len(layers_of(model)))
        for index in bar(layers, phase="repair", unit="layers", progress=progress):
            here = [linear for linear in ours if linear.layer == index]
            wanted = [linear for linear in theirs if linear.layer == index]
            if dense is None and dense_stream is not None:
                layer, wanted = copy.deepcopy((pruned_stream.layers[index], here))
                dense_stream.layers = {index: layer}
            for linears in _groups(here):
                if only_writing and not linears[0].writes:
                    continue
                goals = None if dense_stream is None else _goals(dense_stream, wanted, {x.part for x in linears})
                found = _sums(pruned_stream, linears, goals, rows or {}, weights)
                for linear, sums in zip(linears, found, strict=True):
                    fit(linear, sums)
            if index + 1 < len(layers):
                pruned_stream.advance(index)


def _groups(linears: list[BlockLinear]) -> list[list[BlockLinear]]:
    """The linears of a layer in the order of the data; those of one group see the same input."""
    groups: dict[tuple[str, bool], list[BlockLinear]] = {}
    for linear in linears:
        groups.setdefault((linear.site.name, linear.writes), []).append(linear)
    return list(groups.values())


def _summed(linear: BlockLinear) -> bool:
    """Whether the linear writes into a residual stream that can be seen."""
    return linear.writes and linear.site.residual_sum is not None


def _sum_of(site: Site, run: Stream, key: str) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Where "residual + output" is seen, as inputs and outputs to look at: before a norm, or after the layer."""
    place = cast(nn.Module, site.residual_sum)
    return ({}, {key: place}) if place is run.layers[site.layer] else ({key: place}, {})


def _goals(run: Stream, linears: list[BlockLinear], parts: set[str]) -> Iterator[dict[str, Tensor]]:
    """Of each batch, what the dense linears of one group give, by part; with the residual where they write into it.

    The last group of a layer carries the dense model on to the next.
    """
    wanted = [linear for linear in linears if linear.part in parts]
    first = wanted[0]
    last = first.writes and first.site.kind == "ffn"
    if _summed(first):
        return run.seen(first.layer, *_sum_of(first.site, run, first.part), advance=last)
    return run.seen(first.layer, {}, {linear.part: linear.module for linear in wanted}, advance=last)


def _sums(
    run: Stream,
    linears: list[BlockLinear],
    goals: Iterator[dict[str, Tensor]] | None,
    rows: dict[str, Tensor],
    weights: TokenWeights | None,
) -> list[Sums]:
    first = linears[0]
    inputs: dict[str, nn.Module] = {}
    outputs: dict[str, nn.Module] = {}
    if _summed(first) and goals is not None:
        inputs, outputs = _sum_of(first.site, run, "sum")
        outputs["y"] = first.module
    inputs["x"] = first.module
    none_asked = [None] * run.batches
    # Strict, so that both runs come to their end and take their hooks away.
    pairs = zip(run.seen(first.layer, inputs, outputs), none_asked if goals is None else goals, strict=True)

    def parts() -> Iterator[dict[str, Tensor]]:
        for batch, (seen, goal) in enumerate(pairs):
            part = {"x": torch.cat([seen["x"].new_ones(len(seen["x"]), 1), seen["x"]], 1).float()}
            for linear in linears:
                if weights is not None:
                    part[f"{linear.part} weight"] = weights[batch][linear.name].sqrt()[:, None]
                if goal is not None:
                    # Of what is to stand in the residual stream, the residual itself is there already.
                    target = goal[linear.part].float()
                    if "y" in seen:
                        target = target - (seen["sum"].float() - seen["y"].float())
                    part[linear.part] = target[:, rows[linear.name]] if linear.name in rows else target
            yield part

    columns = first.shape[1] + 1
    moments = [torch.zeros(columns, columns, dtype=torch.double, device=run.device) for _ in linears]
    cross: list[Tensor | float] = [0.0] * len(linears)
    for seen in rebatch(parts()):
        for number, linear in enumerate(linears):
            x, target = seen["x"], seen.get(linear.part)
            if weights is not None:
                root = seen[f"{linear.part} weight"]
                x, target = x * root, None if target is None else target * root
            moments[number] += gram(x)
            if target is not None:
                cross[number] = cross[number] + (target.T @ x).double()
    return [Sums(m, None if goals is None else torch.as_tensor(c)) for m, c in zip(moments, cross, strict=True)]
