"""The model card: README.md beside the weights."""

from __future__ import annotations

import json

from niwaki.results import Result


def model_card(result: Result) -> str:
    """Markdown with the figures of one run."""
    dense, pruned = result.dense, result.pruned
    rows = [(name, f"{dense['quality'][name]:.4f}", f"{value:.4f}") for name, value in pruned["quality"].items()]
    for key, label in (("params", "parameters in blocks"), ("flops", "FLOPs in blocks"), ("size_bytes", "bytes")):
        rows.append((label, f"{dense[key]:,.0f}", f"{pruned[key]:,.0f}"))
    for key, timing in result.latency.items():
        if key.startswith("batch_"):
            rows.append(
                (
                    f"ms, {key.replace('_', ' ')} ({timing['speedup']:.2f}x faster)",
                    f"{timing['dense_ms']:.2f}",
                    f"{timing['pruned_ms']:.2f}",
                )
            )
    table = "\n".join(f"| {name} | {before} | {after} |" for name, before, after in rows)
    budgets = "\n".join(
        f"- {s['name']}: {s['budget']['kind']} asked {s['budget']['requested']:.4f}, "
        f"delivered {s['budget']['achieved']:.4f}"
        for s in result.stages
    )
    base = json.dumps(str(result.recipe["model"]))
    return (
        f"---\nlibrary_name: transformers\ntags: [niwaki, pruned]\nbase_model: {base}\n---\n\n# Pruned with Niwaki\n\n"
        f"From `{result.recipe['model']}`; the exact request is in `recipe.yaml`, all figures are in `result.json`.\n\n"
        f"| | dense | pruned |\n| --- | --- | --- |\n{table}\n\n{budgets}\n\n"
        "```python\nimport niwaki\nfrom transformers import AutoModelForSequenceClassification\n\n"
        'model = AutoModelForSequenceClassification.from_pretrained("this-folder")\n```\n'
    )
