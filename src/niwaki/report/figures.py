"""Single figures of a result as a person reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from niwaki.results import Result


def shown(record: dict[str, Any], name: str) -> str:
    """A quality of a model, with its standard error where it is known; that of an untrained head says so."""
    error = record.get("stderr", {}).get(name)
    untrained = " (new head, untrained)" if record.get("new_head") else ""
    return f"{record['quality'][name]:.4f}" + (f" ± {error:.4f}" if error is not None else "") + untrained


def counted(result: Result) -> list[str]:
    """What is counted in a model, for the table; embeddings where they are not what they were."""
    changed = result.pruned["embedding_params"] != result.dense["embedding_params"]
    return ["params", "flops", *["embedding_params"] * changed, "size_bytes"]


def ratio(found: float, value: float) -> str:
    """`found / value`; of a model without blocks there is none."""
    return f"x {found / value:.3f}" if value else ""


def source_name(found: dict[str, Any]) -> str:
    """What data are called: a set of the Hub as there, a file by its own name; where it lay is nobody's business."""
    path = str(found["path"])
    local = found.get("sha256") is not None or Path(path).is_absolute() or path.startswith((".", "~"))
    return Path(path).name if local else path


def provenance(result: Result) -> str:
    """One line: the data, the seed and the machine that the figures are of."""
    run, tasks = result.run, [source_name(found) for found in result.data.get("tasks", {}).values()]
    sources = [f"{split} {source_name(found)}" for split, found in result.data.items() if split != "tasks"] + tasks
    machine = f"{run['cpu']}, {run['threads']} thread{'' if run['threads'] == 1 else 's'}, {run['device']}"
    return f"Data: {', '.join(sources)}. Seed {run['seed']}. Measured on {machine}, {run['started'][:10]}."
