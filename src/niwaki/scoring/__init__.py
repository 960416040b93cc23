"""Statistics -> scores. Every scorer has the signature `score(site, statistics, seed) -> Tensor[units]`.

A higher score means that removing the unit hurts more. `HEAD_SCORERS` and `NEURON_SCORERS` are the whole choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from niwaki.anatomy import Site
from niwaki.observe.units import Need, Statistics
from niwaki.scoring.activation import activation, activation_variance
from niwaki.scoring.attention_variance import attention_variance
from niwaki.scoring.control import random
from niwaki.scoring.gradient import fisher, taylor
from niwaki.scoring.reconstruction import reconstruction

Scorer = Callable[[Site, Statistics, int], Tensor]

HEAD_SCORERS: dict[str, Scorer] = {
    "attention-variance": attention_variance,
    "activation-variance": activation_variance,
    "fisher": fisher,
    "taylor": taylor,
    "reconstruction": reconstruction,
    "random": random,
}
NEURON_SCORERS: dict[str, Scorer] = {
    "activation": activation,
    "activation-variance": activation_variance,
    "fisher": fisher,
    "taylor": taylor,
    "reconstruction": reconstruction,
    "random": random,
}
LOSS_UNITS = ("fisher", "taylor", "reconstruction")
"""Scores that estimate a loss: heads and neurons scored alike compare as they stand."""

_NEEDS = {
    "attention-variance": Need(attention=True),
    "fisher": Need(task_gradients=True),
    "taylor": Need(task_gradients=True),
    "reconstruction": Need(output_gradients=True, moments=True),
}


def need_of(*names: str) -> Need:
    """What must be observed for these scores."""
    need = Need()
    for name in names:
        need = need | _NEEDS.get(name, Need())
    return need


def score_sites(
    sites: Iterable[Site], statistics: Statistics, head_score: str, neuron_score: str, seed: int
) -> dict[str, Tensor]:
    """Scores `[units]` of every site by name, in units that heads and neurons share.

    Two scores that do not estimate the same loss are put on one footing first: each kind is divided by its sum, so
    that heads and neurons hold equal importance in total, and compete by their share of it.
    """
    scores: dict[str, Tensor] = {}
    kinds: dict[str, list[str]] = {"attention": [], "ffn": []}
    for site in sites:
        scorer = HEAD_SCORERS[head_score] if site.kind == "attention" else NEURON_SCORERS[neuron_score]
        scores[site.name] = scorer(site, statistics, seed).double() if site.units else torch.zeros(0).double()
        kinds[site.kind].append(site.name)
    if head_score == neuron_score and head_score in LOSS_UNITS:
        return scores
    for names in kinds.values():
        total = sum(float(scores[name].sum()) for name in names) or 1.0
        for name in names:
            scores[name] = scores[name] / total
    return scores
