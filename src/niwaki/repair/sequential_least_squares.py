"""Linear by linear, bottom-up: the sums of the least squares that fit each to the dense model.

For a linear with input x in the pruned model (after a 1, for the bias), let t be what it should give: the dense
linear's output on the dense model's input; for the projections into the residual stream
`dense(residual + output) - pruned(residual)`, so that what earlier cuts did wrong is made good there too (K-prune, Park
et al., ICLR 2024, fits output projections so), wherever that sum is to be seen. What is done with the sums is in
`niwaki.repair.least_squares`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import BlockLinear, Site, evaluation_mode, layers_of, linears_of, weight_of
from niwaki.numerics.gram import gram, rebatch
from niwaki.observe import Batch, TokenWeights
from niwaki.observe.stream import Stream
from niwaki.processes import Parts, add_up
from niwaki.progress import bar
from niwaki.repair.kept_solves import KeptSolves
from niwaki.repair.kept_targets import GrowingTargets, KeptTargets, Targets
from niwaki.repair.least_squares import Sums

REFIT_PASSES, AT_ONCE_PASSES, WRITING_PASSES = 5.0, 3.0, 3.7
"""About as many forward passes over the data as one call runs, of both models together: of every linear, of a layer at
once, of those that write into the residual stream alone. Without targets no dense model runs: half of it."""

Fit = Callable[[Sequence[tuple[BlockLinear, Sums]]], list[Parts]]
"""What is fitted of linears with their sums, of each in order: every process has the same."""
After = Callable[[int], Tensor]
"""Number of a batch that is here -> the dense model's hidden states after a layer."""
AfterLayer = Callable[[list[BlockLinear], Stream, After], Parts]
"""The linears of a layer that are fitted, the pruned model's stream before the layer and what the dense model has after
it -> parameters of the layer that are to be others, by name."""


@torch.no_grad()
def sequential_least_squares_(
    model: nn.Module,
    dense: nn.Module | None,
    data: Sequence[Batch],
    fit: Fit,
    put_: Callable[[BlockLinear, Parts], None],
    *,
    only_writing: bool = False,
    rows: dict[str, Tensor] | None = None,
    weights: TokenWeights | None = None,
    targets: bool = True,
    at_once: bool = False,
    kept_by: str | None = "",
    then: AfterLayer | None = None,
    kept: KeptTargets | None = None,
    progress: bool = False,
) -> None:
    """`put_` what `fit` makes of the linears of `model`, bottom-up; the next see how they changed.

    Linears that see the same input are fitted to the same sums, and what came out is kept for a run that goes on, under
    the model and `kept_by`: what fits follow from besides. It is None for one that looks at what it made of linears
    before, which nothing is kept of. Without `dense` that is `model` as it stands: each layer is copied before it is
    fitted, no more than one at a time. With `only_writing` those that write into the residual stream alone. `rows`
    names, by linear, the rows `[out]` of the dense linear that are still there. `weights` say how much each token
    matters; without `targets` no sums of targets are made. With `at_once` the sums of all linears of a layer are made
    in one pass, before one of them is fitted: they see what the layers below give, but not what was fitted in their own
    (SparseGPT goes so). `then` is called when all linears of a layer have been fitted; the layer is what it says. What
    the dense model gives is read where it is `kept`, and kept there where it is not yet. Both models are in evaluation
    mode meanwhile.
    """
    kept, then = (kept, then) if targets else (None, None)
    whole = dense or model
    with evaluation_mode(model, whole), _both(model, whole, data, targets, kept, then is not None) as both:
        ours = linears_of(model, emptied=True)
        theirs = linears_of(dense, emptied=True) if dense is not None else []
        pruned_stream, dense_stream = both.pruned, both.dense
        solves = KeptSolves(model if kept is None else None, kept_by)
        layers = range(len(layers_of(model)))
        both.keep_only_with_(_name(fitted) for fitted in _fits(theirs or ours, only_writing, at_once))
        for index in bar(layers, phase="repair", unit="layers", progress=progress):
            here = [linear for linear in ours if linear.layer == index]
            wanted = [linear for linear in theirs if linear.layer == index]
            if dense is None and dense_stream is not None:
                layer, wanted = copy.deepcopy((pruned_stream.layers[index], here))
                dense_stream.layers = {index: layer}
            for together in _fits(here, only_writing, at_once):
                name = _name(together)
                goal = None if dense_stream is None else _goal_of(together, wanted, dense_stream.layers[index])
                fitted = solves.read(name)
                if fitted is None:
                    seen = _seen_of(together, pruned_stream.layers[index], targets).at(pruned_stream, index)
                    sums = _sums(together, seen, both.goals(index, name, goal), rows or {}, weights, both.tokens)
                    fitted = solves.noted(name, fit(sums))
                elif dense_stream is not None and goal is not None and goal.advance:
                    dense_stream.advance(index)
                for linear, found in zip(chain(*together), fitted, strict=True):
                    put_(linear, found)
            _learn_(here, both, index, then, solves)
            if index + 1 < len(layers):
                pruned_stream.advance(index)


def _learn_(here: list[BlockLinear], both: _Both, index: int, then: AfterLayer | None, solves: KeptSolves) -> None:
    """Make layer `index` what `then` says, if anything, which is kept like what is fitted."""
    if then is None:
        return
    name = f"{index}-learned"
    learned = solves.read(name)
    if learned is None:
        found = then(here, both.pruned, both.after(index))
        learned = solves.noted(name, [{"parameters": list(found), **found}])
    for parameter in learned[0]["parameters"]:
        both.pruned.layers[index].get_parameter(parameter).data.copy_(learned[0][parameter])


@dataclass(frozen=True, eq=False)
class _Both:
    """The stream of the pruned model, and what the dense one gives: as it is `known`, or from a stream of its own."""

    pruned: Stream
    dense: Stream | None
    known: KeptTargets | None
    growing: GrowingTargets | None

    @property
    def tokens(self) -> int:
        """How many are multiplied at once."""
        return self.pruned.together

    def keep_only_with_(self, names: Iterable[str]) -> None:
        """Keep what is noted where it has all these: of a site that is gone here nothing is, and another cut has it."""
        if self.growing is not None:
            self.growing.wanted |= set(names)

    def after(self, index: int) -> After:
        """What the dense model, carried through layer `index`, has after it."""
        name = f"{index}-after"
        if self.known is not None:
            known = self.known
            return lambda number: known.at(name, number, self.pruned.device)["hidden"]
        assert self.dense is not None, "there are targets"
        if self.growing is not None:
            numbers = range(len(self.dense.numbers))
            for _ in self.growing.noted(name, ({"hidden": self.dense.hidden(number)} for number in numbers)):
                pass
        return self.dense.hidden

    def goals(self, index: int, name: str, goal: _Look | None) -> Targets | None:
        """What linears of layer `index` are to give, kept by this `name`."""
        if self.known is not None:
            return self.known.read(name, self.pruned.device)
        if self.dense is None or goal is None:
            return None
        found = goal.at(self.dense, index)
        return found if self.growing is None else self.growing.noted(name, found)


@contextmanager
def _both(
    model: nn.Module, dense: nn.Module, data: Sequence[Batch], targets: bool, kept: KeptTargets | None, states: bool
) -> Iterator[_Both]:
    """While open, both models stand before their first layer; without `targets` the pruned one alone.

    With `states` the dense model's hidden states after its layers are looked at, too: targets kept without are none.
    """
    known = kept if kept is not None and kept.there and (not states or kept.holds("0-after")) else None
    kept = None if kept is not None and kept.there else kept
    with ExitStack() as stack:
        yield _Both(
            pruned=stack.enter_context(Stream(model, data)),
            dense=stack.enter_context(Stream(dense, data)) if targets and known is None else None,
            known=known,
            growing=stack.enter_context(kept.growing()) if kept is not None else None,
        )


def _fits(linears: list[BlockLinear], only_writing: bool, at_once: bool) -> list[list[list[BlockLinear]]]:
    """The groups of linears that are fitted together, in the order of the data."""
    layers: dict[int, list[list[BlockLinear]]] = {}
    for group in _groups(linears):
        if group[0].writes or not only_writing:
            layers.setdefault(group[0].layer, []).append(group)
    return list(layers.values()) if at_once else [[group] for groups in layers.values() for group in groups]


def _name(groups: list[list[BlockLinear]]) -> str:
    """What is kept of groups that are fitted together is called so."""
    return f"{groups[0][0].layer}-{groups[0][0].part}"


def _groups(linears: list[BlockLinear]) -> list[list[BlockLinear]]:
    """The linears in the order of the data; those of one group see the same input."""
    groups: dict[tuple[str, bool], list[BlockLinear]] = {}
    for linear in linears:
        groups.setdefault((linear.site.name, linear.writes), []).append(linear)
    return list(groups.values())


def _summed(linear: BlockLinear, groups: list[list[BlockLinear]]) -> bool:
    """Whether the linear is to make good what is wrong in the residual stream: it writes into one that can be seen.

    Of several that are fitted at once it is the first alone: two would make it good twice.
    """
    first = next((group[0] for group in groups if group[0].writes), None)
    return linear is first and linear.site.residual_sum is not None


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

    def at(self, stream: Stream, index: int) -> Iterator[dict[str, Tensor]]:
        """What is to be seen in layer `index` of a stream, for each batch."""
        return stream.seen(index, self.inputs, self.outputs, self.advance)


def _goal_of(groups: list[list[BlockLinear]], wanted: list[BlockLinear], layer: nn.Module) -> _Look:
    """What to see of the dense model's `layer`: what its linears of `groups` give, by part.

    With the residual where they write into it. The last group of a layer carries the dense model on to the next.
    """
    look = _Look()
    for group in groups:
        parts = {linear.part for linear in group}
        theirs = [linear for linear in wanted if linear.part in parts]
        first = theirs[0]
        look.advance |= first.writes and first.site.kind == "ffn"
        if _summed(group[0], groups):
            look.at_sum(first.site, layer, first.part)
        else:
            look.outputs |= {linear.part: linear.module for linear in theirs}
    return look


def _seen_of(groups: list[list[BlockLinear]], layer: nn.Module, targets: bool) -> _Look:
    """What to see of the pruned model's `layer`: the input of each group; what gives the residual where that counts."""
    look = _Look()
    for first, *_ in groups:
        if targets and _summed(first, groups):
            look.at_sum(first.site, layer, f"{first.part} sum")
            look.outputs[f"{first.part} y"] = first.module
        look.inputs[f"{first.part} x"] = first.module
    return look


def _sums(
    groups: list[list[BlockLinear]],
    seen: Iterator[dict[str, Tensor]],
    goals: Iterator[dict[str, Tensor]] | None,
    rows: dict[str, Tensor],
    weights: TokenWeights | None,
    tokens: int,
) -> list[tuple[BlockLinear, Sums]]:
    """Each linear of `groups` with its sums over all batches, from what was seen of its input and of its target.

    So many `tokens` are multiplied at once.
    """
    # Strict, so that both streams come to their end and take their hooks away.
    pairs = zip(seen, repeat(None) if goals is None else goals, strict=goals is not None)

    # By part: the target of a linear under its own name, beside it its `weight`; `x` under the first of its group.
    def parts() -> Iterator[dict[str, Tensor]]:
        for batch, (own, goal) in enumerate(pairs):
            part = {}
            for group in groups:
                first = group[0].part
                x = own[f"{first} x"]
                part[f"{first} x"] = torch.cat([x.new_ones(len(x), 1), x], 1).float()
                for linear in group:
                    if weights is not None and linear.name in weights[batch]:  # without units it has no gradients
                        part[f"{linear.part} weight"] = weights[batch][linear.name].sqrt()[:, None]
                    if goal is not None:
                        # Of what is to stand in the residual stream, the residual itself is there already.
                        target = goal[linear.part].float()
                        if f"{first} y" in own:
                            target = target - (own[f"{first} sum"].float() - own[f"{first} y"].float())
                        part[linear.part] = target[:, rows[linear.name]] if linear.name in rows else target
            yield part

    found = [(linear, _Added(linear, goals is not None), group[0].part) for group in groups for linear in group]
    for piece in rebatch(parts(), tokens):
        for linear, added, first in found:
            added.add(piece[f"{first} x"], piece.get(linear.part), piece.get(f"{linear.part} weight"))
    return [(linear, added.sums()) for linear, added, _ in found]


class _Added:
    """The sums of one linear as they grow."""

    def __init__(self, linear: BlockLinear, targets: bool) -> None:
        columns, device = linear.shape[1] + 1, weight_of(linear.module).device
        self.moments = torch.zeros(columns, columns, dtype=torch.double, device=device)
        self.cross: Tensor | float = 0.0
        self.targets, self.tokens = targets, 0

    def add(self, x: Tensor, target: Tensor | None, root: Tensor | None) -> None:
        """Tokens by rows; `root` is the root of what each counts, 1 without."""
        if root is not None:
            x, target = x * root, None if target is None else target * root
        self.moments += gram(x)
        self.tokens += len(x)
        if target is not None:
            self.cross = self.cross + (target.T @ x).double()

    def sums(self) -> Sums:
        """All that was added, by all processes."""
        moments, tokens = add_up(self.moments), int(add_up(torch.tensor(self.tokens)))
        return Sums(moments, add_up(torch.as_tensor(self.cross)) if self.targets else None, tokens)
