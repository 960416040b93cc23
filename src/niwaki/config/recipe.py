"""Recipes on file: strict YAML in and out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from niwaki.config.layer_adaptive import LayerAdaptive
from niwaki.config.requests import STAGES, Recipe, Stage
from niwaki.config.types import check_type, kinds_of
from niwaki.config.yaml_file import read_yaml
from niwaki.errors import RequestError, check_choice

LISTS = ("text_columns", "label_names")
"""Keys that hold several words."""
ASKED_ANEW = {"overwrite": "--overwrite", "resume": "--resume (the default) or --restart"}
"""Fields that are never part of a recipe, and the flags that ask for them each time."""


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data (strings, numbers, lists) that `recipe_from_dict` turns back into an equal recipe."""
    plain = dataclasses.asdict(recipe)
    for name in ASKED_ANEW:
        del plain[name]
    for name in LISTS:
        plain[name] = list(plain[name]) if plain[name] else None
    meant = [stage.resolved() if isinstance(stage, LayerAdaptive) else stage for stage in recipe.stages]
    plain["stages"] = [stage_to_dict(stage) for stage in meant]
    return plain


def stage_to_dict(stage: Stage) -> dict[str, Any]:
    """A stage as it stands in a recipe, its `kind` first."""
    kind = next(name for name, cls in STAGES.items() if type(stage) is cls)
    values = dataclasses.asdict(stage)
    return {"kind": kind, **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}}


def stage_from_dict(plain: dict[str, Any]) -> Stage:
    """The inverse of `stage_to_dict`.

    Raises:
        RequestError: as `recipe_from_dict`.
    """
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    kind = check_choice("stages.kind", str(options.pop("kind", None)), STAGES)
    return _build(STAGES[kind], options, f"stages.{kind}")


def recipe_from_dict(plain: Any, overwrite: bool = False, resume: bool = True) -> Recipe:
    """The inverse of `recipe_to_dict`; whether a folder may be replaced, or a run goes on, is never part of a recipe.

    Raises:
        RequestError: for a key that is not known, a missing one, or a value of the wrong type or out of range.
    """
    if not isinstance(plain, dict):
        raise RequestError(f"recipe must be a mapping of keys to values, got {type(plain).__name__}")
    values = dict(plain)
    for name, flags in ASKED_ANEW.items():
        if name in values:
            raise RequestError(f"recipe must leave out {name}, which {flags} says each time, got {values[name]!r}")
    stages = values.pop("stages", None)
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise RequestError(f"stages must be a list of mappings, got {stages!r}")
    # As with flags, where the one seed is that of everything.
    seeded = [
        ({"seed": values["seed"]} if type(values.get("seed")) is int and _has_seed(stage) else {}) | stage
        for stage in stages
    ]
    built = [stage_from_dict(stage) for stage in seeded]
    for name in LISTS:
        if isinstance(values.get(name), list):
            values[name] = tuple(_word(name, word) for word in values[name])
    recipe = _build(Recipe, {**values, "stages": tuple(built)}, "recipe")
    return dataclasses.replace(recipe, overwrite=overwrite, resume=resume)


def _has_seed(stage: dict[str, Any]) -> bool:
    kind = STAGES.get(str(stage.get("kind")))
    return kind is not None and any(field.name == "seed" for field in dataclasses.fields(kind))


def _word(name: str, value: Any) -> str:
    """What stands in a list of words: text, or a whole number as it is written."""
    if isinstance(value, str) or type(value) is int:
        return str(value)
    rule = f"recipe.{name} must hold text; YAML reads a bare yes, no, on, off or 1.0 as something else, so quote it"
    raise RequestError(f"{rule}, got {value!r}")


def _build(cls: Any, values: dict[str, Any], where: str) -> Any:
    known = kinds_of(cls)
    for name, value in values.items():
        check_choice(f"{where} key", str(name), known.keys() - ASKED_ANEW.keys())
        check_type(f"{where}.{name}", value, known[name])
    try:
        return cls(**values)
    except TypeError as error:
        raise RequestError(f"{where}: {error}") from error


def read_recipe(path: Path, overwrite: bool = False, resume: bool = True) -> Recipe:
    """Read a recipe file.

    Raises:
        RequestError: no such file, no such YAML (see `niwaki.config.yaml_file`); see `recipe_from_dict`.
    """
    return recipe_from_dict(read_yaml(path, "recipe"), overwrite, resume)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe so that `read_recipe` gives an equal one."""
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False), encoding="utf-8")
