"""Observe and score the linears of a model, as far as the allocation of zeros wants to know: layer-adaptive pruning and
dynamic sparsity both start here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from niwaki.allocation.profiles import profiles_of
from niwaki.allocation.sparsity import Curve, Profiles
from niwaki.anatomy import BlockLinear, linears_of
from niwaki.config import LayerAdaptive
from niwaki.config.layer_adaptive import SOLVED
from niwaki.observe import Batch, Need, Passes, Statistics, TokenWeights, need_of, observe
from niwaki.observe.moments import with_moments
from niwaki.processes import check_enough, known_to_all
from niwaki.scoring.layers import LAYER_NEEDS, SENSITIVITY, layer_importance
from niwaki.scoring.sensitivity import ROWS
from niwaki.scoring.weights import WEIGHT_NEEDS, weight_scores
from niwaki.sparsify.curves import loss_curve, sparsities_around

DATA_RULES = ("inverse-importance", "owl", "search")
"""Allocations that look at calibration data (`global` does where its scores do)."""
DATA_SCORES = ("wanda", "gradient")
"""Weight scores made of what one pass through the whole model sums; those of a solve are summed layer by layer."""


@dataclass
class Scored:
    """What an observation of a model told of its linears, and the passes over the data that it took.

    `profiles` is what the allocation knows, `token_weights` how much each token matters (None where nothing asked);
    `curves` are losses that were measured around other sparsities than the one that was asked, by sparsity.
    """

    statistics: Statistics
    profiles: Profiles
    token_weights: TokenWeights | None
    passes: Passes
    curves: dict[float, dict[str, Curve]] = field(default_factory=dict)


def score_linears(
    model: nn.Module,
    linears: Sequence[BlockLinear],
    config: LayerAdaptive,
    data: Sequence[Batch],
    token_weights: TokenWeights | None = None,
    *,
    also: Need | None = None,
    around: Sequence[float] = (),
    progress: bool = False,
) -> Scored:
    """What the allocation of a resolved `config` is to know of these linears as `model` stands.

    `also` is what else the same pass is to observe. Token weights, which whole moments need as well, are given where
    they are known already. Rules that do not look at data make no pass over them. `search` measures losses around the
    sparsity that is asked, and around each of these.

    Raises:
        RequestError: no batches for a rule that needs them, or none with labels. WorkError: a sum is not finite.
    """
    also, need, statistics = also or Need(), weight_need(config), Statistics()
    weigh = token_weights is None and (also.token_sizes or need.moments)
    if weigh or also.output_gradients or looks_at_data(config):
        asked = need | replace(also, token_sizes=weigh)
        statistics = observe(model, data, asked, seed=config.seed, progress=progress)
    token_weights = statistics.token_weights if weigh else token_weights
    importance = layer_importance(model, linears, statistics, data, config) if config.layer_score else {}
    scores: dict[str, Any] = {}
    found: dict[str, Any] = {}
    sparsities = list(dict.fromkeys((config.budget[1], *around))) if config.rule == "search" else []
    pairs: Iterable[tuple[BlockLinear, Statistics]] = ((linear, statistics) for linear in linears)
    if need.moments:  # summed and used up linear by linear, by several processes each its own
        pairs = with_moments(model, statistics, data, token_weights, shared=True, progress=progress)
    for linear, own in pairs:
        if config.rule == "global":
            scores[linear.name] = weight_scores(linear, own, config)
        at = [sparsities_around(sparsity) for sparsity in sparsities]
        found[linear.name] = [loss_curve(linear, own, part, by_row=config.compares_rows) for part in at]
    if need.moments:
        scores, found = known_to_all(scores), known_to_all(found)
    curves: dict[float, dict[str, Curve]] = {
        sparsity: {linear.name: tuple(map(tuple, found[linear.name][place])) for linear in linears}
        for place, sparsity in enumerate(sparsities)
    }
    passes = statistics.passes + Passes(float(need.moments))
    if config.layer_score == SENSITIVITY:
        passes += Passes(2.0 * len(linears) * min(ROWS / statistics.rows, 1.0))
    profiles = profiles_of(linears, config, importance, scores, curves.pop(config.budget[1], {}))
    return Scored(statistics, profiles, token_weights, passes, curves)


def profile_linears(model: nn.Module, config: LayerAdaptive, data: Iterable[Batch]) -> tuple[Profiles, Passes]:
    """What the allocation of `config` knows of every linear as `model` stands, and the passes over `data` that it took.

    By default rules look at no data.

    Raises:
        RequestError, WorkError: see `score_linears`.
    """
    linears, meant = linears_of(model), config.resolved()
    batches = list(data) if meant.rule in DATA_RULES else []
    if batches:
        check_enough(batches)
    scored = score_linears(model, linears, meant, batches)
    return scored.profiles, scored.passes


def weight_need(config: LayerAdaptive) -> Need:
    """What must be observed for the allocation of a resolved `config`, and for its scores."""
    need = need_of(LAYER_NEEDS, config.layer_score or "") | chosen_by(config)
    if config.rule == "global":
        need = need | need_of(WEIGHT_NEEDS, config.weight_score)
    return need | Need(moments=True, output_gradients=True) if config.rule == "search" else need


def chosen_by(config: LayerAdaptive) -> Need:
    """What must be observed for the weights of a linear to be ranked; a solve ranks as it goes."""
    return Need() if config.weight_score in SOLVED else need_of(WEIGHT_NEEDS, config.weight_score)


def looks_at_data(config: LayerAdaptive) -> bool:
    """Whether the scores or the allocation are made of what a pass through the whole model sums."""
    by_layer = config.layer_score is not None
    return config.weight_score in DATA_SCORES or by_layer or weight_need(config).moments
