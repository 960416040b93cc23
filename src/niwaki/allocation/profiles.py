"""What an allocation of zeros is told of every linear, and what of it decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from niwaki.adapters import effective_weight, mask_of
from niwaki.allocation.sparsity import Curve, LinearProfile, Profiles
from niwaki.anatomy import BlockLinear
from niwaki.config import LayerAdaptive


def profiles_of(
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    importance: Mapping[str, float] = {},
    scores: Mapping[str, Tensor] = {},
    curves: Mapping[str, Curve] = {},
) -> Profiles:
    """The profiles of these linears from what was found of them, by name; what was not looked for may be missing.

    What is zero in a linear already is the least that it can have.
    """
    lowest, highest = config.bounds
    found = {}
    for linear in linears:
        mask = mask_of(linear.module)
        gone = 0.0 if mask is None else 1 - float(mask.double().mean())
        free = config.may_cut(linear.site)
        found[linear.name] = LinearProfile(
            shape=linear.shape,
            low=max(lowest, gone) if free else gone,
            high=max(highest, gone) if free else gone,
            fixed=not free,
            importance=importance.get(linear.name, 1.0),
            scores=scores.get(linear.name),
            weights=effective_weight(linear.module) if config.rule == "lamp" else None,
            curve=curves.get(linear.name, ()),
        )
    return found


def importance_that_decided(rule: str, profiles: Profiles) -> dict[str, float]:
    """What the rule went by, of each linear as a part of the whole: numbers from 0 that sum to 1.

    The importance of layers where the rule looks at it; for `search` the loss if all its weights went, for `global` the
    sum of its scores, for `lamp` of its squared weights, for `erk` its density; for `uniform` all linears are alike.
    """

    def of(profile: LinearProfile) -> float:
        match rule:
            case "search":
                return profile.curve[-1][1]
            case "global":
                scores = torch.as_tensor(profile.scores).double()
                return float(scores[scores.isfinite()].sum())
            case "lamp":
                return float(torch.as_tensor(profile.weights).double().square().sum())
            case "erk":
                return sum(profile.shape) / profile.size
            case _:
                return profile.importance

    found = {name: of(profile) for name, profile in profiles.items()}
    total = sum(found.values())
    return {name: value / total if total else 1 / len(found) for name, value in found.items()}
