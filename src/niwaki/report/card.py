"""The model card: README.md of the finished folder."""

from __future__ import annotations

from niwaki.report.course import course_table
from niwaki.report.figures import counted, provenance, ratio, shown
from niwaki.report.stages import stage_lines
from niwaki.results import Result


def model_card(result: Result, *, sentences: bool = False) -> str:
    """Markdown with the measured figures; `sentences` says that the folder is one of Sentence Transformers."""
    pruning = stage_lines(result.stages)
    title = "# Pruned with Niwaki" if pruning else "# Fine-tuned with Niwaki"
    lines = ["---", *(_SENTENCES if sentences else _PLAIN), "---", "", title, ""]
    for line in pruning:
        lines += [f"{line}.", ""]
    heads = "| | dense | pruned | change |" if pruning else "| | before | after | change |"
    lines += [heads, "| --- | --- | --- | --- |"]
    for name, value in result.dense["quality"].items():
        sides = " | ".join(shown(record, name) for record in (result.dense, result.pruned))
        lines.append(f"| {name} | {sides} | {result.pruned['quality'][name] - value:+.4f} |")
    lines += [f"| {name} to dense | | {value:.4f} | |" for name, value in result.fidelity.items()]
    for name in counted(result):
        value, found = result.dense[name], result.pruned[name]
        lines.append(f"| {name} | {value:,.0f} | {found:,.0f} | {ratio(found, value)} |")
    for name, timing in result.latency.items():
        if isinstance(timing, dict):
            times = f"{timing['dense_ms']:.1f} | {timing['pruned_ms']:.1f} | {timing['speedup']:.2f}x as fast"
            lines.append(f"| latency, {name} (ms) | {times} |")
    lines += [*_course(result), "", f"{provenance(result)}"]
    # Without Niwaki, uneven layers do not load and a base beside its adapter is not the model that was measured.
    lines += ["", "```python", *(_ENCODE if sentences else _LOAD), "```", ""]
    return "\n".join(lines)


_PLAIN = ("library_name: transformers", "tags: [niwaki]")
_SENTENCES = (
    "library_name: sentence-transformers",
    "pipeline_tag: sentence-similarity",
    "tags: [niwaki, sentence-transformers, sentence-similarity, feature-extraction]",
)
_LOAD = ("import niwaki", "", 'model = niwaki.load("this folder")')
_ENCODE = (
    "import niwaki",
    "from sentence_transformers import SentenceTransformer",
    "",
    'vectors = SentenceTransformer("this folder").encode(["a text", "another"])',
)


def _course(result: Result) -> list[str]:
    """Lines with the table of all states of the model, where there were several stages."""
    rows = [f"| {' | '.join(row)} |" for row in course_table(result)]
    if not rows:
        return []
    columns = rows[0].count("|") - 1
    what = "Stage by stage; dense is the model before the first stage that removes something."
    return ["", what, "", rows[0], f"|{' --- |' * columns}", *rows[1:]]
