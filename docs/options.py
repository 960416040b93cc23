"""docs/options.md, made of the config classes that hold every option with its help: python docs/options.py --write"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from niwaki.config import STAGES, Evaluation, Export, Planning, Recipe, Scoring
from niwaki.config.sweep import SweepOptions

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Options

This page is made by `python docs/options.py --write` from the classes that hold the options. On the command line an
option is a flag, `--head-score`; in Python a field of the class, `head_score`; in a [recipe](recipes.md) a key of its
stage.
"""
RUN = {field.name for field in dataclasses.fields(Recipe)}


def page() -> str:
    """The text of docs/options.md."""
    parts = [
        HEAD,
        "## Every run\n",
        "Of `prune`, `finetune` and recipes: the model, the data, where the result goes.\n",
    ]
    parts.append(_table(Recipe, without={"stages"}))
    for name, stage in STAGES.items():
        command = name if name == "finetune" else f"prune {name}"
        parts += [f"## {command}\n", f"In Python `niwaki.{stage.__name__}`.\n", _table(stage, without=RUN)]
    for command, request in {
        "score": Scoring,
        "plan": Planning,
        "sweep": SweepOptions,
        "eval": Evaluation,
        "export": Export,
    }.items():
        parts += [
            f"## {command}\n",
            "Beside those of [every run](#every-run) that it shares.\n",
            _table(request, without=RUN),
        ]
    return "\n".join(parts)


def _table(config: Any, without: set[str]) -> str:
    rows = [
        f"| `--{field.name.replace('_', '-')}` | {_default(field)} | {field.metadata['help']} |"
        for field in dataclasses.fields(config)
        if field.name not in without
    ]
    return "\n".join(["| option | default | |", "| --- | --- | --- |", *rows, ""])


def _default(field: Any) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    return "" if field.default is None or field.default is False else f"`{field.default}`"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
