"""Many budgets of one model: what they share is made once, what is done is kept; the frontier of what was measured."""

from niwaki.run.sweep.run import run_sweep

__all__ = ["run_sweep"]
