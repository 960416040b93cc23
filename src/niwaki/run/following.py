"""What of a request the command that people run next has to say again, and the form that a folder can take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from niwaki.checkpoint.library import UNREADABLE
from niwaki.config import Evaluation, LayerAdaptive, Recipe, Structured
from niwaki.config.fields import DATA, MACHINE
from niwaki.errors import RequestError
from niwaki.export.gguf.architecture import takes
from niwaki.export.onnx import NO_GRAPH
from niwaki.methods.plan import Plan
from niwaki.methods.unit_plan import UnitPlan
from niwaki.report import flags_of

_OF_ROUNDING = ("quantize", "max_divergence")
"""Of an export, what makes its weights what they are, beside the data that a rounding looked at."""


def said_again(config: type[Recipe | Evaluation], asked: Mapping[str, Any], *without: str) -> list[str]:
    """The flags by which a command of `config` reads a model and data, and computes, as one that was `asked` this.

    Fields `without` are left to whoever calls: what the next command is given itself, or cannot take.
    """
    fields = config.__dataclass_fields__
    named = {name for name, field in fields.items() if field.metadata["panel"] in (DATA, MACHINE)} | {*_OF_ROUNDING}
    return flags_of(config, {name: asked[name] for name in named.intersection(asked) - {*without}})


def carried_out(made: Plan, asked: dict[str, Any], budget: bool) -> list[str]:
    """The flags that carry out a plan which was `asked` for so, with a `budget` or for any."""
    if not isinstance(made, UnitPlan):
        of_budget = [] if budget else ["--sparsity", str(made.config.budget[1])]  # which is the nearest to half
        return [*of_budget, *flags_of(LayerAdaptive, asked)]
    if asked["latency"] is not None:  # is no budget of a plan that is there: its units are, and they are groups
        asked = asked | {name: None for name in asked if name.startswith("latency")}
        asked |= {} if asked["only"] == "ffn" else {"head_unit": "group"}
        budget = False
    return [*([] if budget else _flops(made)), *flags_of(Structured, asked)]


def _flops(made: UnitPlan) -> list[str]:
    """Half of the FLOPs, or what is next to it in tenths."""
    tenths = next(tenths for tenths in range(5, 11) if tenths == 10 or _allows(made, tenths / 10))
    return ["--flops", str(tenths / 10)]


def _allows(made: UnitPlan, flops: float) -> bool:
    try:
        made.at(flops=flops)
    except RequestError:
        return False
    return True


def form_of(folder: str | Path) -> str:
    """What the model of a folder can be exported to for those who run it elsewhere."""
    config, tokenizer = (_told(Path(folder) / f"{name}.json") for name in ("config", "tokenizer"))
    # A folder without a tokenizer becomes a file of token ids alone.
    if takes(config) and dict(tokenizer.get("model") or {}).get("type", "BPE") == "BPE":
        return "gguf"
    return "merged" if config.get("model_type") in NO_GRAPH else "onnx"


def _told(file: Path) -> dict[str, Any]:
    """What is in a file, nothing where it cannot be read."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except UNREADABLE:
        return {}
