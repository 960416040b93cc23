"""Scores + budget -> which units of each site to keep. Both rules share the signature of `global_threshold`."""

from niwaki.allocation.bounds import Bounds, least_cost
from niwaki.allocation.threshold import ALLOCATORS, Allocator, global_threshold, uniform

__all__ = ["ALLOCATORS", "Allocator", "Bounds", "global_threshold", "least_cost", "uniform"]
