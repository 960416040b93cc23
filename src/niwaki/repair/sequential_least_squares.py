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
from dataclasses import dataclass, field
from itertools import repeat
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import BlockLinear, Site, evaluation_mode, layers_of, linears_of, weight_of
from niwaki.numerics.gram import gram, rebatch
from niwaki.observe import Batch, TokenWeights
from niwaki.observe.stream import Stream
from niwaki.progress import bar
from niwaki.repair.least_squares import Sums

REFIT_PASSES = 5.0
"""About as many forward passes over the data as one call runs, of both models together."""

AfterLayer = Callable[[list[BlockLinear], Stream, Stream], None]
"""The linears of a layer, the pruned model's stream before the layer and the dense model's after it."""


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
    then: AfterLayer | None = None,
    progress: bool = False,
) -> None:
    """Call `fit(linear, sums)` for each linear of `model`, bottom-up; it may change the linear, the next sees that.

    Linears that see the same input are fitted to the same sums. Without `dense` that is `model` as it stands: each
    layer is copied before it is fitted, no more than one at a time. With `only_writing` those that write into the
    residual stream alone. `rows` names, by linear, the rows `[out]` of the dense linear that are still there. `weights`
    say how much each token matters; without `targets` no sums of targets are made. `then` is called when all linears of
    a layer have been fitted, and may change the layer. Both models are in evaluation mode meanwhile.
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
            for group in _groups(here):
                if only_writing and not group[0].writes:
                    continue
                looks = [(pruned_stream, _seen_of(group, pruned_stream.layers[index], targets))]
                if dense_stream is not None:
                    looks.append((dense_stream, _goal_of(group, wanted, dense_stream.layers[index])))
                seen, *goals = (stream.seen(index, look.inputs, look.outputs, look.advance) for stream, look in looks)
                sums = _sums(group, seen, goals[0] if goals else None, rows or {}, weights)
                for linear, own in zip(group, sums, strict=True):
                    fit(linear, own)
            if then is not None and dense_stream is not None:
                then(here, pruned_stream, dense_stream)
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


@dataclass
class _Look:
    """Of which modules of a layer the inputs are to be seen, and of which the outputs, by key; see `Stream.seen`."""

    inputs: dict[str, nn.Module] = field(default_factory=dict)
    outputs: dict[str, nn.Module] = field(default_factory=dict)
    advance: bool = False

    def at_sum(self, site: Site, layer: nn.Module, key: str) -> None:
        """See "residual + output" as `key`: before a norm, or after the layer."""
        place = cast(nn.Module, site.residual_sum)
        (self.outputs if place is layer else self.inputs)[key] = place


def _goal_of(group: list[BlockLinear], wanted: list[BlockLinear], layer: nn.Module) -> _Look:
    """What to see of the dense model's `layer`: what its linears of `group` give, by part.

    With the residual where they write into it. The last group of a layer carries the dense model on to the next.
    """
    parts = {linear.part for linear in group}
    dense = [linear for linear in wanted if linear.part in parts]
    first = dense[0]
    look = _Look(advance=first.writes and first.site.kind == "ffn")
    if _summed(first):
        look.at_sum(first.site, layer, first.part)
    else:
        look.outputs = {linear.part: linear.module for linear in dense}
    return look


def _seen_of(group: list[BlockLinear], layer: nn.Module, targets: bool) -> _Look:
    """What to see of the pruned model's `layer`: the input of `group`, and what gives the residual where it counts."""
    first, look = group[0], _Look()
    if targets and _summed(first):
        look.at_sum(first.site, layer, "sum")
        look.outputs["y"] = first.module
    look.inputs["x"] = first.module
    return look


def _sums(
    group: list[BlockLinear],
    seen: Iterator[dict[str, Tensor]],
    goals: Iterator[dict[str, Tensor]] | None,
    rows: dict[str, Tensor],
    weights: TokenWeights | None,
) -> list[Sums]:
    """The sums of each linear of `group` over all batches, from what was seen of its input and of its target."""
    # Strict, so that both streams come to their end and take their hooks away.
    pairs = zip(seen, repeat(None) if goals is None else goals, strict=goals is not None)

    def parts() -> Iterator[dict[str, Tensor]]:
        for batch, (own, goal) in enumerate(pairs):
            part = {"x": torch.cat([own["x"].new_ones(len(own["x"]), 1), own["x"]], 1).float()}
            for linear in group:
                if weights is not None:
                    part[f"{linear.part} weight"] = weights[batch][linear.name].sqrt()[:, None]
                if goal is not None:
                    # Of what is to stand in the residual stream, the residual itself is there already.
                    target = goal[linear.part].float()
                    if "y" in own:
                        target = target - (own["sum"].float() - own["y"].float())
                    part[linear.part] = target[:, rows[linear.name]] if linear.name in rows else target
            yield part

    columns, device = group[0].shape[1] + 1, weight_of(group[0].module).device
    moments = [torch.zeros(columns, columns, dtype=torch.double, device=device) for _ in group]
    cross: list[Tensor | float] = [0.0] * len(group)
    for piece in rebatch(parts()):
        for number, linear in enumerate(group):
            x, target = piece["x"], piece.get(linear.part)
            if weights is not None:
                root = piece[f"{linear.part} weight"]
                x, target = x * root, None if target is None else target * root
            moments[number] += gram(x)
            if target is not None:
                cross[number] = cross[number] + (target.T @ x).double()
    return [Sums(m, None if goals is None else torch.as_tensor(c)) for m, c in zip(moments, cross, strict=True)]
