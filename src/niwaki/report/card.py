"""The model card: README.md of the finished folder."""

from __future__ import annotations

from typing import Any

from niwaki.report.stages import stage_lines
from niwaki.results import Result


def model_card(result: Result) -> str:
    """Markdown with the measured figures."""
    pruning = stage_lines(result.stages)
    title = "# Pruned with Niwaki" if pruning else "# Fine-tuned with Niwaki"
    lines = ["---", "library_name: transformers", "tags: [niwaki]", "---", "", title, ""]
    for line in pruning:
        lines += [f"{line}.", ""]
    heads = "| | dense | pruned | change |" if pruning else "| | before | after | change |"
    lines += [heads, "| --- | --- | --- | --- |"]
    for name, value in result.dense["quality"].items():
        sides = " | ".join(shown(record, name) for record in (result.dense, result.pruned))
        lines.append(f"| {name} | {sides} | {result.pruned['quality'][name] - value:+.4f} |")
    for name in counted(result):
        value, found = result.dense[name], result.pruned[name]
        lines.append(f"| {name} | {value:,.0f} | {found:,.0f} | {ratio(found, value)} |")
    for name, timing in result.latency.items():
        if isinstance(timing, dict):
            times = f"{timing['dense_ms']:.1f} | {timing['pruned_ms']:.1f} | {timing['speedup']:.2f}x as fast"
            lines.append(f"| latency, {name} (ms) | {times} |")
    lines += ["", f"{provenance(result)}"]
    # Without Niwaki, uneven layers do not load and a base beside its adapter is not the model that was measured.
    lines += ["", "```python", "import niwaki", "", 'model = niwaki.load("this folder")', "```", ""]
    return "\n".join(lines)


def shown(record: dict[str, Any], name: str) -> str:
    """A quality of a model for a person, with its standard error where it is known."""
    error = record.get("stderr", {}).get(name)
    return f"{record['quality'][name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def counted(result: Result) -> list[str]:
    """What is counted in a model, for the table; embeddings where they are not what they were."""
    changed = result.pruned["embedding_params"] != result.dense["embedding_params"]
    return ["params", "flops", *["embedding_params"] * changed, "size_bytes"]


def ratio(found: float, value: float) -> str:
    """`found / value` for a person; of a model without blocks there is none."""
    return f"x {found / value:.3f}" if value else ""


def provenance(result: Result) -> str:
    """One line: the data, the seed and the machine that the figures are of."""
    run, tasks = result.run, [found["path"] for found in result.data.get("tasks", {}).values()]
    sources = [f"{split} {found['path']}" for split, found in result.data.items() if split != "tasks"] + tasks
    machine = f"{run['cpu']}, {run['threads']} threads, {run['device']}"
    return f"Data: {', '.join(sources)}. Seed {run['seed']}. Measured on {machine}, {run['started'][:10]}."
