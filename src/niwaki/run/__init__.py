"""From a request to a finished folder."""

from niwaki.run.demo.run import run_demo
from niwaki.run.evaluation import run_evaluation
from niwaki.run.exporting import run_export
from niwaki.run.planning import run_planning
from niwaki.run.push import push
from niwaki.run.recipe import run_recipe
from niwaki.run.rows import to_rows
from niwaki.run.scoring import run_scoring
from niwaki.run.sweep import run_sweep

__all__ = [
    "push",
    "run_demo",
    "run_evaluation",
    "run_export",
    "run_planning",
    "run_recipe",
    "run_scoring",
    "run_sweep",
    "to_rows",
]
