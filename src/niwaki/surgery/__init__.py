"""The plan, smaller matrices, and the shapes that follow, in the config."""

from niwaki.surgery.cut import cut_, output_inside, stale_numbers
from niwaki.surgery.plan import Plan, plan_table

__all__ = ["Plan", "cut_", "output_inside", "plan_table", "stale_numbers"]
