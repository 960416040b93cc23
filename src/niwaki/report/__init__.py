"""What was done, for people to read: a page and a model card."""

from niwaki.report.card import model_card
from niwaki.report.page import render

__all__ = ["model_card", "render"]
