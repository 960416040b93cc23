"""What a pruning stage asked and got, in a line: a stage counts what came into it, not into the whole run."""

from __future__ import annotations

from typing import Any


def stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    """One line for each stage of `result.json` that prunes; they are numbered where there are several."""
    pruning = [stage for stage in stages if stage["name"] != "finetune"]
    lines = []
    for number, stage in enumerate(pruning, 1):
        kind, got, asked = (stage["budget"][key] for key in ("kind", "achieved", "requested"))
        of = "" if len(pruning) == 1 else " that came into this stage"
        what = f"of the blocks' linear weights{of} are zero" if kind == "sparsity" else f"of the {kind}{of} kept"
        said = f"{got:.4f} {what} ({asked:g} asked)"
        if kind == "tokens":
            most = f", at most {asked:.4f} asked" if asked != got else ""
            said = f"{stage['kept']:,} of {stage['total']:,} tokens{of} kept ({got:.4f}{most})"
        name = stage["name"] if len(pruning) == 1 else f"{number}. {stage['name']}"
        lines.append(f"{name}: {said}")
    return lines
