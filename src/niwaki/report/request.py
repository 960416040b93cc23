"""What was asked, in words, and the command that asks it again."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from niwaki.config import STAGES, Evaluation, Recipe
from niwaki.results import Result


def asked(result: Result) -> list[dict[str, Any]]:
    """Of each stage its `name`, what it does (`words`), and its `options`; an evaluation has no stages.

    An option has a `name`, a `value` and a `help`, is `own` where it is not the default, and `chosen` among names.
    """
    found = []
    for stage in result.recipe.get("stages", ()):
        kind = STAGES.get(stage.get("kind", ""))
        if kind is None:
            continue
        words = " ".join((kind.__doc__ or "").split("\n\n")[0].replace("`", "").split())
        idle = ("recover_loss", "learning_rate_schedule") if stage.get("recover_epochs") == 0 else ()
        given = [(field, stage[field.name]) for field in dataclasses.fields(kind) if stage.get(field.name) is not None]
        options = [
            {
                "name": field.name.replace("_", " "),
                "value": " ".join(_words(value)),
                "help": field.metadata["help"],
                "own": value != field.default,
                "chosen": isinstance(value, str) and value not in ("none", "no", "auto") and field.name not in idle,
            }
            for field, value in given
        ]
        found.append({"name": stage["kind"], "words": words, "options": options})
    return found


def trains(result: Result) -> bool:
    """Whether any stage trained on rows."""
    return any(stage.get("recover_epochs", stage.get("epochs", 0)) for stage in result.recipe.get("stages", ()))


def command(result: Result) -> str:
    """The command that does the same again: that of the recipe beside the result where flags cannot say it all."""
    recipe = result.recipe
    if "stages" not in recipe:
        return _line(["niwaki", "eval"], [(Evaluation, recipe)])
    stages = recipe["stages"]
    kind = stages[0].get("kind") if len(stages) == 1 else None
    one_seed = all(stage.get("seed", recipe.get("seed")) == recipe.get("seed") for stage in stages)
    if kind not in STAGES or not one_seed:
        return shlex.join(["niwaki", "run", f"{recipe.get('out', '.')}/recipe.yaml", "--overwrite"])
    verb = ["niwaki", kind] if kind == "finetune" else ["niwaki", "prune", kind]
    return _line(verb, [(Recipe, recipe), (STAGES[kind], stages[0])])


def _line(verb: list[str], parts: list[tuple[Any, dict[str, Any]]]) -> str:
    flags: dict[str, list[str]] = {}
    for config, values in parts:
        flags |= _flags(config, values)
    return shlex.join([*verb, *_typed(flags)])


def flags_of(config: Any, values: dict[str, Any]) -> list[str]:
    """Of `values` of the fields of a config class those that are not the default, as flags are typed."""
    return _typed(_flags(config, values))


def _flags(config: Any, values: dict[str, Any]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    for field in dataclasses.fields(config):
        value = values.get(field.name)
        unasked = value is None or value is False or value == field.default  # 0 is asked where False is not
        if field.name not in ("stages", "overwrite") and not unasked:
            flags[f"--{field.name.replace('_', '-')}"] = [] if value is True else _words(value)
    return flags


def _typed(flags: dict[str, list[str]]) -> list[str]:
    """Flags and their words; where one begins with a dash, which would be taken for a flag, as `--flag=word` each."""
    typed: list[str] = []
    for flag, words in flags.items():
        dashed = any(word.startswith("-") for word in words)
        typed += [f"{flag}={word}" for word in words] if dashed else [flag, *words]
    return typed


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list | tuple) else [str(value)]
