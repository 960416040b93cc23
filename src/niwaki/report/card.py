"""The model card: README.md of the finished folder, its figures in the Hub's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from niwaki.report.course import course_table
from niwaki.report.figures import counted, provenance, ratio, shown, source_name
from niwaki.report.headline import how_measured, spread, ways
from niwaki.report.stages import stage_lines
from niwaki.results import Result

_ON_THE_HUB = {"causal": "text-generation", "masked": "fill-mask", "embedding": "feature-extraction"}
"""Tasks that the Hub calls otherwise."""
_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}
"""Metrics that the Hub calls otherwise."""


def model_card(
    result: Result,
    *,
    task: str = "",
    sentences: bool = False,
    masks: bool = False,
    source: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the measured figures, under metadata that the Hub reads.

    `task` is the model's by its name in `niwaki.anatomy.TASKS`; `sentences` says that the folder is one of Sentence
    Transformers, `masks` that weights of it are held at zero. `source` is what the card of the model that came in says
    and is carried over: `base_model`, `license`, `license_name`, `license_link`, `language`.
    """
    pruning = stage_lines(result.stages)
    lines = ["# Pruned with Niwaki" if pruning else "# Fine-tuned with Niwaki", ""]
    for line in pruning:
        lines += [f"{line}.", ""]
    heads = "| | dense | pruned | change |" if pruning else "| | before | after | change |"
    lines += [heads, "| --- | --- | --- | --- |"]
    for name, value in result.dense["quality"].items():
        sides = " | ".join(shown(record, name) for record in (result.dense, result.pruned))
        lines.append(f"| {_cell(name)} | {sides} | {result.pruned['quality'][name] - value:+.4f} |")
    lines += [f"| {name} to dense | | {value:.4f} | |" for name, value in result.fidelity.items()]
    for name in counted(result):
        value, found = result.dense[name], result.pruned[name]
        lines.append(f"| {name} | {value:,.0f} | {found:,.0f} | {ratio(found, value)} |")
    for way in ways(result):
        times = f"{way['dense_ms']:.1f} | {way['pruned_ms']:.1f} | {way['speedup']:.2f}x as fast{spread(way)}"
        lines.append(f"| latency, {way['name']} (ms) | {times} |")
    if how := how_measured(result):
        lines += ["", f"{how}."]
    lines += [*_course(result), "", f"{provenance(result)}"]
    if result.recipe.get("keep_adapter"):
        lines += ["", f"{_BESIDE} {_MASKED if masks else _UNMASKED}"]
    # Without Niwaki, uneven layers do not load and a base beside its adapter is not the model that was measured.
    lines += ["", "```python", *(_ENCODE if sentences else _LOAD), "```", ""]
    data = _metadata(result, "sentence-similarity" if sentences else _ON_THE_HUB.get(task, task), sentences, source)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)).content


_BESIDE = (
    "The weights here are those of the base: what was measured is the base with the adapter in `adapter/`. "
    "Transformers alone would load the base without a word."
)
_UNMASKED = "Load both as below, or `adapter/` with PEFT."
_MASKED = "Load both as below: PEFT alone would fill the zeros of the base with what the adapter adds."
_LOAD = (
    "import niwaki",
    "from transformers import AutoTokenizer",
    "",
    'folder = "this folder"  # or the name on the Hub',
    "model = niwaki.load(folder)",
    "tokenizer = AutoTokenizer.from_pretrained(folder)",
)
_ENCODE = (
    "import niwaki",
    "from sentence_transformers import SentenceTransformer",
    "",
    'vectors = SentenceTransformer("this folder").encode(["a text", "another"])',
)


def _metadata(result: Result, task: str, sentences: bool, source: Mapping[str, Any] | None) -> ModelCardData:
    """What the Hub reads of a card."""
    library, tags = ("sentence-transformers", ["feature-extraction"]) if sentences else ("transformers", [])
    evaluated = result.data.get("eval")
    found = None
    if evaluated and task:
        path = source_name(evaluated)
        found = [
            EvalResult(
                task_type=task,
                dataset_type=path,
                dataset_name=path,
                dataset_split=evaluated.get("split"),
                metric_type=str(_METRICS.get(name, name)),
                metric_name=name,
                metric_value=value,
            )
            for name, value in result.pruned["quality"].items()
            if "/" not in name  # a task of its own data
        ]
    return ModelCardData(
        **dict(source or {}),
        library_name=library,
        pipeline_tag=task or None,
        tags=["niwaki", *([library, task] if sentences else []), *tags],
        model_name=_folder_name(result) if found else None,
        eval_results=found or None,
    )


def _folder_name(result: Result) -> str:
    """What the folder is called; the Hub takes no card without, and `.` says nothing."""
    return Path(str(result.recipe.get("out") or "")).name.strip(".") or "model"


def _cell(text: str) -> str:
    """Text in a table: a metric that is called by a file of questions may have a bar in its name."""
    return text.replace("|", "\\|")


def _course(result: Result) -> list[str]:
    """Lines with the table of all states of the model, where there were several stages."""
    table = course_table(result)
    rows = [f"| {' | '.join(map(_cell, row))} |" for row in table]
    if not rows:
        return []
    columns = len(table[0])
    what = "Stage by stage; dense is the model before the first stage that removes something."
    return ["", what, "", rows[0], f"|{' --- |' * columns}", *rows[1:]]
