"""Scores + budget -> which units of each site to keep. Both rules share the signature of `global_threshold`."""

from niwaki.allocation.threshold import ALLOCATORS, Bounds, global_threshold, least_cost, uniform

__all__ = ["ALLOCATORS", "Bounds", "global_threshold", "least_cost", "uniform"]
