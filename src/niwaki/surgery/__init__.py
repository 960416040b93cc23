"""The plan, and smaller matrices."""

from niwaki.surgery.cut import cut_
from niwaki.surgery.plan import Plan, plan_table

__all__ = ["Plan", "cut_", "plan_table"]
