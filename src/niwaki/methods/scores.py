"""What `niwaki.score` gives back, whatever was scored."""

from __future__ import annotations


class Scores(dict[str, list[float]]):
    """Name of a site -> one score per head or neuron; name of a linear -> one per output, the mean over its weights.

    Higher means that removing it hurts more. `importance` has a number for each site (its part of all scores) or linear
    (by the layer score, where one was asked).
    """

    def __init__(self) -> None:
        super().__init__()
        self.importance: dict[str, float] = {}
