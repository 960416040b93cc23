"""Scores of units. Every scorer has the signature `score(site, statistics, seed) -> Tensor[units]`.

A higher score means that removing the unit hurts more. `HEAD_SCORERS` and `NEURON_SCORERS` are the whole choice; their
names stand in `niwaki.config.structured`.

attention-variance (heads): how much the distribution of attention varies, over keys and over inputs: the seed's.
activation (neurons): `E[x_j^2]^(1/2) * ||W_:,j||_2`, the size of what the neuron adds to the output: the seed's.
activation-variance: `var(x_j) * ||W_:,j||_2^2`, what is lost once its mean is moved into the bias (FLAP, An et al.,
AAAI 2024). fisher: mean over rows of (dL/dm)^2, m = 1 a mask on the unit (Kwon et al., NeurIPS 2022). taylor: mean over
rows of |dL/dm|, which is |sum w dL/dw| over the unit's outgoing weights (Molchanov et al., 2019; Michel et al., 2019).
reconstruction: group OBS, see its own file. random: the control.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from niwaki.adapters import effective_weight
from niwaki.anatomy import Site
from niwaki.config import HEAD_SCORES, NEURON_SCORES, Structured
from niwaki.config.by_name import by_name
from niwaki.observe import Batch, Need, Statistics, need_of
from niwaki.observe.moments import with_moments
from niwaki.processes import known_to_all
from niwaki.scoring.control import uniform_numbers
from niwaki.scoring.reconstruction import reconstruction  # noqa: F401 - one of the scorers, found by its name

Scorer = Callable[[Site, Statistics, int], Tensor]


def attention_variance(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Mean variance over keys plus mean variance over inputs (`niwaki.observe.attention`), `[heads]`, in [0, 2].

    A head is redundant only if it neither prefers some keys nor changes its preference with the query.
    """
    del seed
    sums = torch.as_tensor(statistics.sites[site.name].attention)
    return (sums[:, 0] + sums[:, 1]) / sums[:, 2]


def activation(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Root mean square of the activation times the norm of the outgoing weights, `[units]`."""
    del seed
    squares = torch.as_tensor(statistics.linears[site.output_name].input_squares) / (statistics.tokens * site.runs)
    per_column = squares.sqrt() * effective_weight(site.output).norm(dim=0)
    return per_column.reshape(site.units, site.width).sum(1)


def activation_variance(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Variance of the activation times the squared norm of the outgoing weights, `[units]`."""
    del seed
    sums, seen = statistics.linears[site.output_name], statistics.tokens * site.runs
    mean = torch.as_tensor(sums.inputs) / seen
    variance = (torch.as_tensor(sums.input_squares) / seen - mean.square()).clamp_min(0)
    per_column = variance * effective_weight(site.output).square().sum(0)
    return per_column.reshape(site.units, site.width).sum(1)


def fisher(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Mean squared mask gradient, `[units]`."""
    del seed
    return torch.as_tensor(statistics.sites[site.name].fisher) / statistics.rows


def taylor(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Mean absolute mask gradient, `[units]`."""
    del seed
    return torch.as_tensor(statistics.sites[site.name].taylor) / statistics.rows


def random(site: Site, statistics: Statistics, seed: int) -> Tensor:
    """Uniform random numbers, `[units]`."""
    del statistics
    return uniform_numbers((site.units,), site.name, seed)


HEAD_SCORERS: dict[str, Scorer] = by_name(HEAD_SCORES, sys.modules[__name__])
NEURON_SCORERS: dict[str, Scorer] = by_name(NEURON_SCORES, sys.modules[__name__])
LOSS_UNITS = ("fisher", "taylor", "reconstruction")
"""Scores that estimate a loss: heads and neurons scored alike compare as they stand."""
UNIT_NEEDS = {
    "attention-variance": Need(attention=True),
    "fisher": Need(task_gradients=True),
    "taylor": Need(task_gradients=True),
    "reconstruction": Need(gradient_moments=True, token_sizes=True, moments=True),
}


def score_units(
    model: nn.Module,
    sites: Sequence[Site],
    statistics: Statistics,
    data: Sequence[Batch],
    config: Structured,
    *,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Scores `[units]` of every site by name as `config` asks, in units that heads and neurons share.

    Two scores that do not estimate the same loss are put on one footing first: each kind is divided by its sum, so
    that heads and neurons hold equal importance in total, and compete by their part of it.
    """
    head_score, neuron_score = config.head_score, config.neuron_score
    need, found = need_of(UNIT_NEEDS, head_score, neuron_score), {}
    for site, own in _with_needed_moments(model, sites, statistics, data, need, progress):
        scorer = HEAD_SCORERS[head_score] if site.kind == "attention" else NEURON_SCORERS[neuron_score]
        found[site.name] = scorer(site, own, config.seed).double()
    scores = {site.name: torch.zeros(site.units).double() for site in sites}
    scores |= known_to_all(found) if need.moments else found
    if head_score == neuron_score and head_score in LOSS_UNITS:
        return scores
    for kind in ("attention", "ffn"):
        names = [site.name for site in sites if site.kind == kind]
        total = sum(float(scores[name].sum()) for name in names) or 1.0
        scores |= {name: scores[name] / total for name in names}
    return scores


def _with_needed_moments(
    model: nn.Module,
    sites: Iterable[Site],
    statistics: Statistics,
    data: Sequence[Batch],
    need: Need,
    progress: bool,
) -> Iterator[tuple[Site, Statistics]]:
    """Each site that has units, with all that `need` asks of it: the whole moments of one at a time.

    Where it asks for these, several processes share the sites.
    """
    named = {site.output_name: site for site in sites if site.units}
    if not need.moments:
        yield from ((site, statistics) for site in named.values())
        return
    weights = statistics.token_weights
    pairs = with_moments(model, statistics, data, weights, only_writing=True, shared=True, progress=progress)
    for linear, own in pairs:
        yield named[linear.name], own
