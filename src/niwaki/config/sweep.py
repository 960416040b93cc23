"""What a sweep can be asked for: methods x budgets x seeds on one model and one pair of data sets."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niwaki.config.dynamic import DynamicSparsityTraining
from niwaki.config.fields import MACHINE, OUTPUT, check_at_least, option
from niwaki.config.layer_adaptive import AUTO, LayerAdaptive
from niwaki.config.planned import Planned
from niwaki.config.recipe import recipe_from_dict, recipe_to_dict, stage_from_dict, stage_to_dict
from niwaki.config.requests import Recipe
from niwaki.config.structured import BUDGETS, Structured
from niwaki.config.types import check_types
from niwaki.config.yaml_file import read_yaml
from niwaki.errors import RequestError, check_choice

Method = Structured | LayerAdaptive | DynamicSparsityTraining
_METHODS: dict[str, type[Method]] = {
    "structured": Structured,
    "layer-adaptive": LayerAdaptive,
    "dynamic": DynamicSparsityTraining,
}
BUDGETS_OF: dict[type[Method], tuple[str, ...]] = {
    Structured: BUDGETS,
    LayerAdaptive: ("sparsity",),
    DynamicSparsityTraining: ("sparsity",),
}
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # folders are named by it
_CONDITION = re.compile(  # a file of questions has any name: Facts/accuracy, rock-and-roll/accuracy
    r"\s*([^\W\d][^\s<>=*]*)\s*(>=|<=)\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(\*\s*dense)?\s*"
)


@dataclass(frozen=True)
class Condition:
    """`name >= number`, or `name <= number`; with `of_dense` the number is a share of the dense model's."""

    name: str
    at_least: bool
    number: float
    of_dense: bool


def parse_pick(text: str) -> tuple[Condition, ...]:
    """Conditions such as `accuracy >= 0.99 * dense and size_bytes <= 5e7`; nothing else is understood.

    Raises:
        RequestError: showing the part that is no condition.
    """
    found = []
    for part in re.split(r"\sand\s", text):
        match = _CONDITION.fullmatch(part)
        if match is None or math.isinf(float(match[3])):
            rule = "pick must be conditions such as 'accuracy >= 0.99 * dense', joined by 'and'"
            raise RequestError(f"{rule}, got {part.strip()!r}")
        found.append(Condition(match[1], match[2] == ">=", float(match[3]), match[4] is not None))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is told to a sweep beside its recipes."""

    jobs: int = option(
        1, "Points that are pruned side by side, each with its part of the threads; timed one by one.", MACHINE
    )
    pick: str | None = option(
        None,
        "Conditions such as 'accuracy >= 0.99 * dense'; the smallest model that holds them goes to OUT/picked.",
        OUTPUT,
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "jobs")
        if self.pick is not None:
            parse_pick(self.pick)


@dataclass(frozen=True)
class Point:
    """One run of a sweep. Points of one `plan` are cut from the same plan; None makes its own way."""

    name: str
    recipe: Recipe
    plan: str | None
    around: tuple[float, ...] = ()
    """The sparsities of all points of its plan."""


@dataclass(frozen=True, kw_only=True)
class Sweep(SweepOptions):
    """Points: each of `methods`, by name, with each of its budgets, for each of `seeds`.

    `recipe` says all else: the model, the data, the folder to write; of its stages only those of the points are done.
    """

    recipe: Recipe
    methods: Mapping[str, Sequence[Method]]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, stages in self.methods.items():
            if not re.fullmatch(_NAME, name):
                raise RequestError(f"methods.name must be letters, digits, dots and dashes, at most 100, got {name!r}")
            for stage in stages:
                if isinstance(stage, Planned) and (stage.keep_quality is not None or stage.plan is not None):
                    raise RequestError(f"methods must have budgets, and no plan or keep_quality, got {name!r} with one")
                if self.jobs > 1 and stage.budget[0] == "latency":
                    raise RequestError(f"jobs must be 1 for budgets in latency, which are timed, got {self.jobs}")
        twice = [name for name, count in Counter(point.name for point in self.points).items() if count > 1]
        if twice:
            raise RequestError(f"budgets and seeds must differ from each other, got {twice[0]!r} twice")
        if not self.points:
            raise RequestError("methods and seeds must name at least one point, got none")

    @property
    def points(self) -> tuple[Point, ...]:
        """All runs, by method, budget and seed."""
        return tuple(
            self._point(name, stages, stage, seed)
            for (name, stages), seed in itertools.product(self.methods.items(), self.seeds)
            for stage in stages
        )

    def _point(self, name: str, stages: Sequence[Method], stage: Method, seed: int) -> Point:
        kind, value = stage.budget
        full = f"{name}-{kind}-{value:g}-seed-{seed}"
        recipe = dataclasses.replace(
            self.recipe,
            stages=(dataclasses.replace(stage, seed=seed),),
            seed=seed,
            out=str(Path(self.recipe.out) / "points" / full),
            overwrite=False,
        )
        around = tuple(other.budget[1] for other in stages) if isinstance(stage, LayerAdaptive) else ()
        return Point(full, recipe, f"{name}-seed-{seed}" if _plannable(stage) else None, around)


def _plannable(stage: Method) -> bool:
    """Whether a plan that is made for one budget is exactly the one for every other."""
    match stage:
        case Structured():
            return stage.steps == 1 and not stage.drop_layers and stage.latency is None
        case LayerAdaptive():
            return stage.steps == 1 and stage.importance_strength != AUTO
        case DynamicSparsityTraining():
            return False


def methods_of(kind: str, options: dict[str, Any]) -> list[Method]:
    """A method with each of its budgets; `options` has a list of numbers for a kind of budget.

    Raises:
        RequestError: an unknown method, no budget, a value out of range.
    """
    method = _METHODS[check_choice("methods.kind", kind, _METHODS)]
    budgets = BUDGETS_OF[method]
    rest = {name: value for name, value in options.items() if name not in budgets}
    asked = [(name, value) for name in budgets for value in _numbers(name, options.get(name))]
    if "seed" in rest:
        raise RequestError(f"seeds must be asked of the whole sweep, got seed {rest['seed']!r} of {kind}")
    if not asked:
        raise RequestError(f"budget: at least one of {', '.join(budgets)} must be given for {kind}, got none")
    stages = (stage_from_dict({"kind": kind, **rest, name: value}) for name, value in asked)
    return [stage for stage in stages if isinstance(stage, method)]


def _numbers(name: str, values: Any) -> list[float]:
    """One number or several, as floats."""
    found = values if isinstance(values, list | tuple) else [] if values is None else [values]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in found):
        raise RequestError(f"{name} must be numbers, got {values!r}")
    return [float(value) for value in found]


def read_sweep(path: Path, out: str, overwrite: bool, given: dict[str, Any], resume: bool = True) -> Sweep:
    """A sweep from a file: the keys of a recipe, but `methods` for its stages, `seeds`, and perhaps `jobs` and `pick`.

    A method has the keys of a stage, with lists of budgets, and perhaps a `name`. What is `given` goes before the file.

    Raises:
        RequestError: no such file, no YAML, a key that is not known, a value of the wrong type or out of range.
    """
    plain = read_yaml(path, "sweep")
    methods = plain.pop("methods", None) if isinstance(plain, dict) else None
    if not isinstance(methods, list) or not methods or not all(isinstance(each, dict) for each in methods):
        raise RequestError(f"methods must be a list of mappings, got {methods!r}")
    found: dict[str, list[Method]] = {}
    for method in methods:
        options = dict(method)
        kind = str(options.pop("kind", None))
        name = str(options.pop("name", kind))
        if name in found:
            raise RequestError(f"methods of one kind must have a name each, got {name!r} twice")
        found[name] = methods_of(kind, options)
    seeds = plain.pop("seeds", [0])
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise RequestError(f"seeds must be a list of whole numbers, got {seeds!r}")
    mine = {field.name: plain.pop(field.name) for field in dataclasses.fields(SweepOptions) if field.name in plain}
    for wrong in ("stages", "seed", "out"):
        if wrong in plain:
            raise RequestError(f"sweep must name methods, seeds and --out in place of {wrong}, got {plain[wrong]!r}")
    if type(mine.get("jobs", 1)) is not int or not isinstance(mine.get("pick", ""), str):
        raise RequestError(f"jobs must be a whole number and pick a text, got {mine}")
    first = stage_to_dict(next(iter(found.values()))[0])
    recipe = recipe_from_dict({**plain, "out": out, "stages": [first]}, overwrite, resume)
    return Sweep(recipe=recipe, methods=found, seeds=tuple(seeds), **{**mine, **given})


def sweep_to_dict(sweep: Sweep) -> dict[str, Any]:
    """What is asked of a sweep, without where it is written, how it is worked through and what is picked of it."""
    plain = recipe_to_dict(sweep.recipe)
    for name in ("out", "seed", "stages"):
        del plain[name]
    methods = {name: [stage_to_dict(stage) for stage in stages] for name, stages in sweep.methods.items()}
    return {**plain, "methods": methods, "seeds": list(sweep.seeds)}
