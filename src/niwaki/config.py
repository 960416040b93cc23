"""What can be asked for: frozen dataclasses that check themselves, read from and written to strict YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from niwaki.errors import RequestError, check_choice

HEAD_SCORES = ("attention-variance", "fisher", "taylor", "reconstruction", "random")
NEURON_SCORES = ("activation", "activation-variance", "fisher", "taylor", "reconstruction", "random")
ALLOCATIONS = ("global", "uniform")
REPAIRS = ("none", "bias", "least-squares")
BUDGETS = ("flops", "params")


@dataclass(frozen=True)
class Structured:
    """Remove whole attention heads and FFN neurons until a budget is met.

    Exactly one of `flops`, `params` is given: the fraction of the transformer blocks to KEEP, in (0, 1].
    `steps` observations are made, each followed by a part of the cut, so that later scores see the earlier cuts.
    """

    flops: float | None = None
    params: float | None = None
    head_score: str = "reconstruction"
    neuron_score: str = "reconstruction"
    allocation: str = "global"
    repair: str = "least-squares"
    steps: int = 1
    round_to: int = 1
    min_heads: int = 1
    min_neurons: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        given = [kind for kind in BUDGETS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise RequestError(f"budget: exactly one of flops, params must be given, got {found}")
        kind, value = self.budget
        if not 0.0 < value <= 1.0:
            raise RequestError(f"{kind} must be a fraction to keep in (0, 1], got {value:g}")
        check_choice("head_score", self.head_score, HEAD_SCORES)
        check_choice("neuron_score", self.neuron_score, NEURON_SCORES)
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("repair", self.repair, REPAIRS)
        for name in ("steps", "round_to", "min_heads"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.min_neurons < 0:
            raise RequestError(f"min_neurons must be at least 0, got {self.min_neurons}")

    @property
    def budget(self) -> tuple[str, float]:
        """The one budget that was given: its kind and the fraction to keep."""
        return next((kind, getattr(self, kind)) for kind in BUDGETS if getattr(self, kind) is not None)


STAGES = {"structured": Structured}


@dataclass(frozen=True)
class Recipe:
    """One whole run: the model, the data, the stages in order, where the result goes."""

    model: str
    train_data: str
    eval_data: str
    out: str
    stages: tuple[Structured, ...]
    base_model: str | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    metric: str | None = None
    seed: int = 0
    device: str = "cpu"
    batch_size: int = 32
    max_length: int = 128
    calibration_samples: int = 2048
    keep_adapter: bool = False
    overwrite: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not self.stages:
            raise RequestError(f"stages must name at least one of {', '.join(STAGES)}, got none")
        for name in ("batch_size", "max_length", "calibration_samples"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, got {getattr(self, name)}")


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data (strings, numbers, lists) that `recipe_from_dict` turns back into an equal recipe."""
    plain = dataclasses.asdict(recipe)
    del plain["overwrite"]
    plain["text_columns"] = list(recipe.text_columns) if recipe.text_columns else None
    names = {cls: name for name, cls in STAGES.items()}
    plain["stages"] = [{"kind": names[type(stage)], **dataclasses.asdict(stage)} for stage in recipe.stages]
    return plain


def recipe_from_dict(plain: Any) -> Recipe:
    """The inverse of `recipe_to_dict`.

    Raises:
        RequestError: for a key that is not known, a missing one, or a value out of range.
    """
    if not isinstance(plain, dict):
        raise RequestError(f"recipe must be a mapping of keys to values, got {type(plain).__name__}")
    values = dict(plain)
    stages = values.pop("stages", None)
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise RequestError(f"stages must be a list of mappings, got {stages!r}")
    built = []
    for stage in stages:
        options = dict(stage)
        kind = check_choice("stages.kind", str(options.pop("kind", None)), STAGES)
        built.append(_build(STAGES[kind], options, f"stages.{kind}"))
    if values.get("text_columns") is not None:
        values["text_columns"] = tuple(values["text_columns"])
    return _build(Recipe, {**values, "stages": tuple(built)}, "recipe")


def _build(cls: Any, values: dict[str, Any], where: str) -> Any:
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        check_choice(f"{where} key", str(name), known)
    try:
        return cls(**values)
    except TypeError as error:
        raise RequestError(f"{where}: {error}") from error


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file (YAML, `safe_load`)."""
    if not path.is_file():
        raise RequestError(f"recipe must be an existing file, got {str(path)!r}")
    try:
        return recipe_from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise RequestError(f"recipe {str(path)!r} is not valid YAML: {line}") from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe so that `read_recipe` gives an equal one."""
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False), encoding="utf-8")
