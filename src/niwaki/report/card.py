"""The model card: README.md of the finished folder."""

from __future__ import annotations

from niwaki.results import Result


def model_card(result: Result) -> str:
    """Markdown with the measured figures."""
    pruning = [stage for stage in result.stages if stage["name"] != "finetune"]
    title = "# Pruned with Niwaki" if pruning else "# Fine-tuned with Niwaki"
    lines = ["---", "library_name: transformers", "tags: [niwaki]", "---", "", title, ""]
    for stage in pruning:
        budget = stage["budget"]
        asked, got = budget["requested"], budget["achieved"]
        kind = budget["kind"]
        what = "of the blocks' linear weights are zero" if kind == "sparsity" else f"of the {kind} that came in kept"
        lines += [f"{stage['name']}: {got:.4f} {what} ({asked:g} asked).", ""]
    lines += ["| | dense | pruned |" if pruning else "| | before | after |", "| --- | --- | --- |"]
    for name, value in result.dense["quality"].items():
        lines.append(f"| {name} | {value:.4f} | {result.pruned['quality'][name]:.4f} |")
    for name in ("params", "flops", "size_bytes"):
        lines.append(f"| {name} | {result.dense[name]:,.0f} | {result.pruned[name]:,.0f} |")
    for name, timing in result.latency.items():
        if isinstance(timing, dict):
            lines.append(f"| latency, {name} (ms) | {timing['dense_ms']:.1f} | {timing['pruned_ms']:.1f} |")
    lines += ["", f"{provenance(result)}"]
    # Without Niwaki, uneven layers do not load and a base beside its adapter is not the model that was measured.
    lines += ["", "```python", "import niwaki", "", 'model = niwaki.load("this folder")', "```", ""]
    return "\n".join(lines)


def provenance(result: Result) -> str:
    """One line: the data, the seed and the machine that the figures are of."""
    run, sources = result.run, [f"{split} {found['path']}" for split, found in result.data.items()]
    machine = f"{run['cpu']}, {run['threads']} threads, {run['device']}"
    return f"Data: {', '.join(sources)}. Seed {run['seed']}. Measured on {machine}, {run['started'][:10]}."
