"""result.json -> what a person reads. Pure functions from results to text."""

from niwaki.report.card import model_card
from niwaki.report.course import course_lines
from niwaki.report.engine import engine_rows
from niwaki.report.figures import shown
from niwaki.report.headline import spread, ways
from niwaki.report.page import is_page, page
from niwaki.report.request import flags_of
from niwaki.report.stages import stage_lines
from niwaki.report.sweep import sweep_lines
from niwaki.report.terminal import result_table

__all__ = [
    "course_lines",
    "engine_rows",
    "flags_of",
    "is_page",
    "model_card",
    "page",
    "result_table",
    "shown",
    "spread",
    "stage_lines",
    "sweep_lines",
    "ways",
]
