"""The help of a command: what most people need first, every flag in a panel, and no flag lost."""

from __future__ import annotations

import dataclasses

import pytest
from typer.main import get_command

from niwaki.cli import app
from niwaki.config import STAGES, Recipe
from niwaki.config.fields import PANELS


def options(*words):
    command = get_command(app)
    for word in words:
        command = command.commands[word]
    return [parameter for parameter in command.params if parameter.name != "help"]


@pytest.mark.parametrize("method", ["structured", "layer-adaptive", "dynamic", "vocabulary"])
def test_what_most_people_need_comes_first(method):
    found = options("prune", method)
    first = [option.name for option in found if option.rich_help_panel is None]
    budget = {"structured": ["flops"], "layer-adaptive": ["sparsity"], "dynamic": ["sparsity"], "vocabulary": []}
    assert first == ["model", "out", "train_data", "eval_data", *budget[method]]
    panels = [option.rich_help_panel or "" for option in found]
    assert panels[:-2] == sorted(panels[:-2], key=PANELS.index)  # but --quiet and --json, which every command has
    fields = {field.name for config in (Recipe, STAGES[method]) for field in dataclasses.fields(config)}
    assert {option.name for option in found} == fields - {"stages"} | {"quiet", "json"}


def test_a_shell_can_complete_the_command():
    assert {"install_completion", "show_completion"} <= {option.name for option in options()}
