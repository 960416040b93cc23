"""result.json -> what a person reads. Pure functions from results to text."""

from niwaki.report.card import model_card, shown
from niwaki.report.page import page
from niwaki.report.stages import stage_lines

__all__ = ["model_card", "page", "shown", "stage_lines"]
