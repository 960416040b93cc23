"""The typed record behind `result.json` (schema 1)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from niwaki.errors import RequestError

SCHEMA = 1


@dataclass(frozen=True)
class SiteResult:
    """What became of one site: `kept` of `total` units, and its share of all scores.

    Of heads also which `units` stayed, and the score of each before. `other_scores` are of the whole site or linear, by
    name: what the same pass told beside the score that decided.
    """

    name: str
    kind: str
    importance: float
    kept: int
    total: int
    scores: tuple[float, ...] | None = None
    units: tuple[int, ...] | None = None
    other_scores: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Fraction of the units that was pruned; 0 for a site that had none."""
        return 1 - self.kept / self.total if self.total else 0.0


@dataclass(frozen=True)
class StageResult:
    """What one stage asked, delivered and cost. `requested` and `achieved` are fractions kept."""

    name: str
    kind: str
    requested: float
    achieved: float
    seconds: float
    forward_passes: float
    backward_passes: float
    layers: tuple[SiteResult, ...]
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The stage as it stands in `result.json` (`layers` and `warnings` are kept at the top level there)."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "budget": {"kind": self.kind, "requested": self.requested, "achieved": self.achieved},
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            **self.details,
        }


@dataclass(frozen=True)
class Result:
    """All of `result.json`. The keys are fixed by the contract; values are plain data."""

    run: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]
    stages: list[dict[str, Any]]
    dense: dict[str, Any]
    pruned: dict[str, Any]
    latency: dict[str, Any]
    layers: list[dict[str, Any]]
    warnings: list[str]
    fidelity: dict[str, float] = field(default_factory=dict)
    """How alike pruned and dense are on the evaluation data, see `niwaki.evaluate.fidelity`."""
    behaviour: dict[str, Any] = field(default_factory=dict)
    """What pruned says otherwise than dense, see `niwaki.evaluate.behaviour`."""
    engine: str = "pytorch"
    """Where quality, size and latency were measured; with the bits where they are not those of the checkpoint."""
    engines: list[dict[str, Any]] = field(default_factory=list)
    """Dense and pruned there, each as it is and rounded, see `niwaki.run.engines`; empty where nothing is rounded."""
    schema: int = SCHEMA


def as_json(result: Result) -> str:
    """The text of `result.json`."""
    return json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False)


def write_result(result: Result, path: Path) -> None:
    """Write `result.json`; a value that JSON cannot hold (NaN) is an error, not a surprise for the reader."""
    path.write_text(as_json(result) + "\n", encoding="utf-8")


def read_result(path: Path) -> Result:
    """Read a `result.json` that `write_result` wrote.

    Raises:
        RequestError: no such file, one that is not JSON, or one that this version did not write.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"DIR must hold a result.json that reads, got {str(path)!r}: {error}") from error
    known = {f.name for f in dataclasses.fields(Result)}
    needed = known - {"fidelity", "behaviour", "engine", "engines"}  # younger than the schema
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not needed <= set(found) <= known:
        schema = found.get("schema") if isinstance(found, dict) else None
        rule = f"DIR must hold a result.json of schema {SCHEMA} as Niwaki writes it"
        raise RequestError(f"{rule}, got {str(path)!r} with schema {schema!r}")
    return Result(**found)
