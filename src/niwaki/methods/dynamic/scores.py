"""Scores of the weights of one linear while training; every one is `[out, in]`, higher where a weight matters more.

Drop: magnitude |w|; saliency, |w g| smoothed over captured steps, I <- b1 I + (1 - b1) |w g|, times its uncertainty
U <- b2 U + (1 - b2) ||w g| - I| (PLATON, Zhang et al., ICML 2022). Grow, of weights that are zero: gradient |g| (RigL,
Evci et al., ICML 2020), g the signed gradient of the effective weight summed over the captured steps; saliency, as
above with the value that would return for w, or, of a trained weight that would return as 0 (it was loaded so, or
`returns` says so), the mean |w| of the active weights of its linear: scored |0 g| it would never return; momentum, the
smoothed signed gradient (Dettmers & Zettlemoyer, 2019); random (SET, Mocanu et al., 2018); shuffled, saliencies
(gradients, where magnitudes are dropped) in random places among the weights that are zero: the control.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.config import DynamicSparsityConfig
from niwaki.config.by_name import by_name
from niwaki.config.dynamic import DROPS, GROWS


@dataclass
class Seen:
    """What captured steps left of one linear; tensors are `[out, in]`, None where no score needs them.

    `gradient` is the sum since the last update; the others are smoothed over all updates.
    """

    gradient: Tensor | None = None
    saliency: Tensor | None = None
    uncertainty: Tensor | None = None
    momentum: Tensor | None = None

    def add(self, config: DynamicSparsityConfig, weight: Tensor, gradient: Tensor) -> None:
        """Take in one optimizer step: the signed gradient of its whole batch, and the dense weight it is of."""
        if config.grow == "gradient" or (config.grow == "shuffled" and config.drop == "magnitude"):
            self.gradient = gradient if self.gradient is None else self.gradient + gradient
        if "saliency" in (config.drop, config.grow):
            found = (weight * gradient).abs_()
            if self.saliency is None or self.uncertainty is None:
                self.saliency, self.uncertainty = torch.zeros_like(found), torch.zeros_like(found)
            self.saliency.lerp_(found, 1 - config.smoothing)
            self.uncertainty.lerp_(found.sub_(self.saliency).abs_(), 1 - config.uncertainty)
        if config.grow == "momentum":
            self.momentum = torch.zeros_like(gradient) if self.momentum is None else self.momentum
            self.momentum.lerp_(gradient, 1 - config.smoothing)


def needs_gradients(config: DynamicSparsityConfig) -> bool:
    """Whether a drop or grow score of `config` looks at gradients."""
    return config.drop == "saliency" or config.grow in ("gradient", "shuffled", "saliency", "momentum")


def scores_values(config: DynamicSparsityConfig) -> bool:
    """Whether what grows is scored by the value that it would return with."""
    return config.grow == "saliency" or (config.grow == "shuffled" and config.drop == "saliency")


def stood_in(weight: Tensor, mask: Tensor) -> Tensor:
    """The dense weight, with the mean |w| of the active weights where an inactive one would return as 0."""
    mean = (weight.abs() * mask).sum(dtype=torch.float32) / mask.sum().clamp_min(1)
    return weight.masked_fill((weight == 0) & ~mask, mean.to(weight.dtype))


Dense = Callable[[], Tensor]
Scorer = Callable[[Dense, Seen, torch.Generator], Tensor]
"""The dense effective weight (made when called), what captured steps left, the generator -> scores."""


def magnitude(weight: Dense, seen: Seen, generator: torch.Generator) -> Tensor:
    """Absolute effective weight."""
    del seen, generator
    return weight().abs()


def saliency(weight: Dense, seen: Seen, generator: torch.Generator) -> Tensor:
    """Smoothed |w g| times its uncertainty."""
    del weight, generator
    assert seen.saliency is not None
    assert seen.uncertainty is not None
    return seen.saliency * seen.uncertainty


def gradient(weight: Dense, seen: Seen, generator: torch.Generator) -> Tensor:
    """Absolute sum of the signed gradients."""
    del weight, generator
    assert seen.gradient is not None
    return seen.gradient.abs()


def momentum(weight: Dense, seen: Seen, generator: torch.Generator) -> Tensor:
    """Absolute smoothed signed gradient."""
    del weight, generator
    assert seen.momentum is not None
    return seen.momentum.abs()


def random(weight: Dense, seen: Seen, generator: torch.Generator) -> Tensor:
    """Uniform random numbers."""
    del seen
    like = weight()
    return torch.rand(like.shape, generator=generator).to(like.device)


def shuffled(weight: Dense, seen: Seen, generator: torch.Generator) -> Tensor:
    """What the drop score is of, saliency or else gradient; `shuffle` then takes the places away."""
    return (gradient if seen.saliency is None else saliency)(weight, seen, generator)


def shuffle(scores: Tensor, active: Tensor, generator: torch.Generator) -> Tensor:
    """The scores of inactive units in random places among them."""
    places = (~active).flatten().nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=generator).to(places.device)]
    found = scores.flatten().clone()
    found[places] = scores.flatten()[drawn]
    return found.reshape(scores.shape)


def alike(config: DynamicSparsityConfig) -> bool:
    """Whether drop and grow scores are of one kind, so that they compare."""
    return config.drop == "saliency" and config.grow in ("saliency", "shuffled")


_HERE = sys.modules[__name__]
DROP_SCORERS: dict[str, Scorer] = by_name(DROPS, _HERE)
GROW_SCORERS: dict[str, Scorer] = by_name((name for name in GROWS if name != "none"), _HERE)
