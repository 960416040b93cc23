"""Scores of layers that any pass over the data tells beside what was asked of it."""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.anatomy import BlockLinear
from niwaki.observe import Statistics
from niwaki.scoring.layers import LAYER_SCORERS

BESIDE = ("block-influence", "activation-magnitude")


def scores_beside(linears: Sequence[BlockLinear], statistics: Statistics) -> dict[str, dict[str, float]]:
    """Name of a linear -> score of `BESIDE` -> value; nothing of linears that were not observed."""
    seen = [linear for linear in linears if linear.name in statistics.linears]
    found = {score: LAYER_SCORERS[score](seen, statistics, 0) for score in BESIDE}
    return {linear.name: {score: values[linear.name] for score, values in found.items()} for linear in seen}
