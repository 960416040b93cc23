"""docs/benchmarks.md and the table of README.md, made from the committed results.

    python benchmarks/tables.py            # the page on standard output
    python benchmarks/tables.py --write    # the page, and the table of the README between its two marks

A test (`tests/unit/test_pages.py`) holds both files against what this makes.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
MARKS = "<!-- results: python benchmarks/tables.py --write -->\n", "<!-- end of results -->\n"
FIGURES = ("spearman", "micro_f1", "f1")
"""What a task is told by, where it has several metrics."""

HEAD = """# Benchmarks

This page is made by `python benchmarks/tables.py --write` from the JSON in `benchmarks/results/`, and a test holds it
against that. Each file there also says what was asked, the versions and the machine. A cell is the mean over the seeds,
in brackets their range; one figure alone is one seed. What the figures mean is in [measured.md](measured.md).
"""

SHAPES = ("32x64", "1x16")
"""Rows and tokens at which speed is told."""

Column = tuple[str, Callable[[Any], float], int]
"""Heading, the figure of a run, digits after the point."""


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
        README.write_text(with_results(README.read_text("utf-8")), encoding="utf-8")
    else:
        print(page(), end="")


def page() -> str:
    """The text of docs/benchmarks.md."""
    return "\n".join([HEAD, *(line for title, tables in sections() for line in _section(title, tables))])


Section = tuple[str, list[list[str]]]
"""Heading, tables."""
ACCURACY: Column = ("accuracy", lambda r: quality(r), 4)
KL: Column = ("KL", lambda r: r["kl"], 4)
COST: Column = ("cost", lambda r: r["cost"], 1)
PEAK: Column = ("peak MiB", lambda r: r["peak"], 0)
OVER: Column = ("over the rule", lambda r: r["over"], 2)


def sections() -> Iterator[Section]:
    """All of the page."""
    yield "Structured, SST-2 (`structured.json`)", [by_budget("structured", ("flops",), ACCURACY, COST)]
    keys = ("head_score", "neuron_score", "flops")
    yield "Scores of heads and neurons, SST-2 (`scores.json`)", [by_budget("scores", keys, ACCURACY)]
    searched: list[Column] = [
        (f"{what}, {when}", lambda r, what=what, when=when: r[when][what], 4)
        for what in ("searched", "others")
        for when in ("start", "end")
    ]
    started: Column = ("accuracy, start", lambda r: r["start"]["quality"]["accuracy"], 4)
    ended: Column = ("accuracy, end", lambda r: r["end"]["quality"]["accuracy"], 4)
    title = "Widths and zeros searched on the true divergence, SST-2 (`search.json`)"
    yield title, [by_budget("search", ("flops", "sparsity", "rows", "generations"), *searched, started, ended)]
    yield from _zeros()
    held: Column = ("held out", lambda r: r["held"]["accuracy"], 4)
    keys = ("method", "interval", "sparsity")
    yield "Dynamic sparsity, SST-2 (`dynamic.json`)", [by_budget("dynamic", keys, ACCURACY, held)]
    yield "Recovery, SST-2 (`recovery.json`)", [by_budget("recovery", ("flops", "sparsity", "full"), ACCURACY, KL)]
    trimmed: list[Column] = [
        ("tokens", lambda r: r["kept"], 0),
        ("MB", lambda r: r["size_bytes"] / 1e6, 1),
        ("tokens gone from the evaluation data", lambda r: r["eval"]["tokens_gone"], 0),
    ]
    tables = [by_budget("vocabulary", ("vocabulary", "flops"), *trimmed, ACCURACY)]
    yield "Vocabulary, SST-2 (`vocabulary.json`)", tables
    yield "Other tasks (`tasks.json`)", tasks()
    yield "What `--keep-quality` promised and kept (`keep_quality.json`)", promises()
    yield "A sweep against single runs, SST-2 (`sweep.json`)", sweep()
    yield "Peers (`peers.json`)", peers()
    yield "Engines, `--flops 0.5`, a processor with VNNI (`engines_*.json`)", engines()
    yield from _language_models()
    yield from _costs()


def _zeros() -> Iterator[Section]:
    keys = ("repair", "allocation", "weight_score", "sparsity")
    for what, script in (
        ("Layer-adaptive, SST-2", "layer_adaptive"),
        ("SparseGPT as published, SST-2", "sparsegpt_uniform"),
        ("Layer-adaptive, CoLA (Matthews correlation)", "layer_adaptive_cola"),
        ("Layer-adaptive, RTE", "layer_adaptive_rte"),
    ):
        yield f"{what} (`{script}.json`)", [by_budget(script, keys, ("quality", quality, 4), KL)]
    forward: Column = ("forward passes", lambda r: r["passes"]["forward"], 1)
    keys = ("sparsity", "flops", "reconstruct")
    yield "Layers that learn (`reconstruction.json`)", [by_budget("reconstruction", keys, ACCURACY, KL, forward)]
    yield "Allocations of zeros, SST-2, no refit (`allocations.json`)", allocations()
    strength: Column = ("strength", lambda r: r["strength"], 2)
    table = by_budget("allocations_auto", ("weight_score", "layer_score", "sparsity"), strength, ACCURACY)
    yield "The same by inverse-importance at the strength that diverges least (`allocations_auto.json`)", [table]
    errors: list[Column] = [(how, lambda r, how=how: r["error"][how], 4) for how in ("obs", "obs, exact", "admm")]
    title = "Error of linears by how they are pruned, mean and range over the linears (`layer_errors.json`)"
    yield title, [by_budget("layer_errors", ("sparsity",), *errors)]


def _language_models() -> Iterator[Section]:
    perplexity: Column = ("perplexity", lambda r: r["perplexity"], 2)
    excess: Column = ("excess nats", lambda r: r["excess"], 3)
    for what, script in (
        ("Language models, TinyStories", "decoders"),
        ("Layers that learn or not, TinyStories", "decoders_learned"),
        ("Language models, WikiText-2", "wikitext"),
        ("SmolLM2-135M-Instruct, WikiText-2", "smollm2"),
        ("SmolLM2-135M-Instruct, WikiText-2, 64 windows", "smollm2_64"),
    ):
        yield f"{what} (`{script}.json`)", [by_budget(script, ("kind", "share", "rule"), perplexity, excess)]
    recovered: list[Column] = [
        ("before", lambda r: r["before"], 2),
        ("after", lambda r: r["after"], 2),
        ("of the excess gone", lambda r: r["gone"], 2),
    ]
    for title, script in (
        ("TinyStories", "language_recovery"),
        ("SmolLM2-135M-Instruct, WikiText-2", "smollm2_recovery"),
    ):
        table = by_budget(script, ("model", "rule", "epochs", "rate"), *recovered)
        yield f"Recovery of language models, {title} (`{script}.json`)", [table]
    acc: list[Column] = [(name, lambda r, name=name: r[name]["value"], 3) for name in ("acc", "acc_norm")]
    tables = [by_budget("continuations", ("model",), *acc), *continuations()]
    yield "SmolLM2-135M-Instruct, questions by choice (`continuations.json`)", tables
    seconds: Column = ("seconds a block", lambda r: r["seconds_a_block"], 1)
    speeds: list[Column] = [("prefill", lambda r: r["prefill"], 2), ("decode", lambda r: r["decode"], 2)]
    parts: tuple[tuple[str, list[Column]], ...] = (
        ("sparsegpt", [COST, PEAK, OVER]),
        ("blocks", [seconds, PEAK]),
        ("speed", speeds),
    )
    tables = [
        by_budget("mobilellm", ("what", "case"), *columns, only=lambda r, what=what: r["what"] == what)
        for what, columns in parts
    ]
    yield "MobileLLM's shapes, random weights (`mobilellm.json`)", tables


def _costs() -> Iterator[Section]:
    torch: list[Column] = [(f"torch {shape}", lambda r, s=shape: r["torch"][s], 2) for shape in SHAPES]
    achieved: Column = ("achieved", lambda r: r["achieved"], 3)
    table = by_budget("speed", ("budget",), ACCURACY, achieved, *torch)
    yield "Speed: times as fast as dense (`speed.json`)", [table]
    twice: list[Column] = [
        ("times as fast as one", lambda r: r["speedup"], 2),
        ("largest difference", lambda r: r["largest_difference"], 6),
    ]
    yield "Two processes, of one thread each (`processes.json`)", [by_budget("processes", ("what",), *twice)]
    growth: Column = ("growth", lambda r: r["growth"], 2)
    yield "Cost, in passes (`cost.json`)", [by_budget("cost", ("rows", "layers"), COST, growth)]
    yield "Cost, layer-adaptive (`layer_adaptive_cost.json`)", [by_budget("layer_adaptive_cost", ("sparsity",), COST)]
    yield "Memory (`memory.json`)", [by_budget("memory", ("layers", "width", "rows"), PEAK, OVER)]
    yield "Runs killed at random moments (`kill*.json`)", [kills()]
    cases: list[Column] = [("cases", lambda r: r["cases"], 0), ("findings", lambda r: r["findings"], 0)]
    yield "Damaged input (`fuzz.json`)", [by_budget("fuzz", ("kind",), *cases)]


def by_budget(script: str, keys: tuple[str, ...], *columns: Column, only: Any = None) -> list[str]:
    """One row for each value of `keys`: mean and range over the seeds of every column; nothing without a file."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for run in runs_of(script):
        if only is None or only(run):
            groups.setdefault(tuple(_text(run.get(key, "")) for key in keys), []).append(run)
    if not groups:
        return []
    rows = [
        [*group, *(_cell([value(run) for run in runs], digits) for _, value, digits in columns)]
        for group, runs in groups.items()
    ]
    return _table([*keys, *(name for name, _, _ in columns)], rows)


def allocations() -> list[list[str]]:
    """A table for each weight score: a row for each allocation, a column for each sparsity, the mean over the seeds."""
    found: dict[str, dict[tuple[str, float], list[float]]] = {}
    for run in runs_of("allocations"):
        power = run["importance_power"]
        shown = power if isinstance(power, str) else f"{power:g}"
        looked_at = f" {run['layer_score']}, power {shown}" if run["layer_score"] else ""
        cells = found.setdefault(run["allocation"] + looked_at, {})
        cells.setdefault((run["weight_score"], run["sparsity"]), []).append(quality(run))
    made = []
    for weight_score in dict.fromkeys(score for cells in found.values() for score, _ in cells):
        columns = sorted({s for cells in found.values() for score, s in cells if score == weight_score})
        rows = [
            [name, *(f"{statistics.mean(cells[weight_score, s]):.3f}" for s in columns)]
            for name, cells in found.items()
            if all((weight_score, s) in cells for s in columns)
        ]
        made.append(_table([f"{weight_score}, shared out by", *(f"{s:g}" for s in columns)], rows))
    return made


def continuations() -> list[list[str]]:
    """What each model says after the same beginnings, a table for each beginning."""
    runs = runs_of("continuations")
    starts = runs[0]["continuations"] if runs else ()
    return [
        _table(["model", start], [[run["model"], " ".join(run["continuations"][start].split())] for run in runs])
        for start in starts
    ]


def tasks() -> list[list[str]]:
    """A table for each task: what is left of its figure, and how alike dense and pruned are, by budget and method."""
    path, made = RESULTS / "tasks.json", []
    for name, task in json.loads(path.read_text(encoding="utf-8"))["tasks"].items() if path.is_file() else ():
        groups: dict[tuple[str, str, str, str], list[Any]] = {}
        for run in task["runs"]:
            kept = f"flops {run['flops']:g}" if "flops" in run else f"sparsity {run['sparsity']:g}"
            rate = run.get("recover_learning_rate")
            recovery = f"{run['recover_epochs']}{f', rate {rate:g}' if rate else ''}"
            groups.setdefault((kept, run["method"], str(run["rows"]), recovery), []).append(run)
        metric = next(figure for figure in (*FIGURES, *task["dense"]) if figure in task["dense"])
        like = next(iter(task["runs"][0]["fidelity"]))
        rows = [
            [
                *group,
                *(_cell([run[key][of] for run in runs], 4) for key, of in (("quality", metric), ("fidelity", like))),
            ]
            for group, runs in sorted(groups.items())
        ]
        head = [f"{name}, dense {task['dense'][metric]:.4f}", "method", "rows", "recovery epochs", metric, like]
        made.append(_table(head, rows))
    return made


def promises() -> list[list[str]]:
    """By task and seed the budget that was found, and what it kept where it was searched and where it was not."""
    runs = runs_of("keep_quality")
    columns: tuple[Column, ...] = (
        ("FLOPs", lambda r: r["found"]["flops"], 3),
        ("share kept, held out", lambda r: r["held_out_share"], 4),
        ("share kept, evaluation data", lambda r: r["share"], 4),
        ("speed-up, batch 32", lambda r: r["speedup"]["batch_32"], 2),
    )
    keys = ("task", "keep_quality", "tries", "rows", "seed")
    table = by_budget("keep_quality", keys, *columns, only=lambda run: run["found"] is not None)
    missed = [f"{run['task']}, seed {run['seed']}: {run['share']:.4f}" for run in runs if run["miss"]]
    none = [f"{run['task']}, seed {run['seed']}: {run['said']}" for run in runs if run["found"] is None]
    said = [f"{len(missed)} of {len(runs)} runs missed it on the evaluation data.", *([""] if missed or none else [])]
    return [table, [*said, *(f"- {line}" for line in (*missed, *none))]] if runs else []


def kills() -> list[str]:
    """What `--out` was after each kill, by how many processes a run had; nothing where nothing was killed."""
    seen = {processes: runs_of(script) for processes, script in ((1, "kill"), (2, "kill_processes"))}
    counts = ("kills", "ended before", "absent", "old", "new", "ends")
    rows = [
        [str(processes), *(str(sum(run.get(what, 0) for run in runs)) for what in counts), str(_failures(runs))]
        for processes, runs in seen.items()
        if runs
    ]
    head = ["processes", "kills", "kills that came too late", "`--out` absent", "whole old", "whole new"]
    return _table([*head, "runs left to their end", "failures"], rows) if rows else []


def _failures(runs: list[Any]) -> int:
    return sum(len(run["failures"]) for run in runs)


def sweep() -> list[list[str]]:
    """What a sweep took of the time of single runs, and what it shared; nothing where a run is missing."""
    path = RESULTS / "sweep.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "time_of_single_runs" not in found:
        return []
    singles = [run for run in found["runs"] if run["what"] == "single"]
    whole, halved = (next(run for run in found["runs"] if run["what"] == what) for what in ("sweep", "killed sweep"))
    rows = [
        ["processors' time over that of single runs", f"{found['processor_time_of_single_runs']:.2f}"],
        ["time by the clock over theirs, beside other work", f"{found['time_of_single_runs']:.2f}"],
        ["points with the weights of the single run, byte for byte", str(found["points_equal_to_single_runs"])],
        ["times that the dense model was measured, and observed", f"{whole['dense_measured']}, {whole['observed']}"],
        ["points there when another such sweep was killed", str(halved["points_before"])],
        ["the same `sweep.json` after it was given again", "yes" if found["equal_when_killed"] else "no"],
    ]
    return [_table([f"{len(singles)} budgets, {found['asked']['rows']} calibration rows", ""], rows)]


def peers() -> list[list[str]]:
    """A table for each task and budget, the best first; then where Niwaki is below a peer, and what did not run."""
    path = RESULTS / "peers.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    groups: dict[tuple[str, str], dict[str, list[Any]]] = {}
    failed: dict[str, None] = {}
    for run in found["runs"]:
        name = f"{run['peer']} ({run['package'].split()[1]})" if run["package"] else run["peer"]
        if run["failed"]:
            failed[f"{name}: {run['failed']}"] = None
            continue
        kind = "flops" if "flops" in run else "sparsity"
        asked = f"{kind} {run[kind]:g}, {run['rows']} rows"
        groups.setdefault((run["task"], asked), {}).setdefault(name, []).append(run)
    made, below = [], []
    for (task, budget), runs in sorted(groups.items()):
        metric = next(figure for figure in ("spearman", *found["dense"][task]) if figure in found["dense"][task])
        made_alike = [set(run.get("fidelity", ())) for of in runs.values() for run in of]
        columns: list[Column] = [
            (metric, lambda r, metric=metric: r["quality"][metric], 4),
            *((like, lambda r, like=like: r["fidelity"][like], 4) for like in sorted(set.intersection(*made_alike))),
            ("cost", lambda r: r["cost"], 1),
            ("peak MiB", lambda r: r["peak_mib"], 0),
            ("speed-up", lambda r: r["speedup"], 2),
        ]
        means = {name: statistics.mean(run["quality"][metric] for run in of) for name, of in runs.items()}
        rows = [
            [
                name,
                *(_cell([value(run) for run in runs[name]], digits) for _, value, digits in columns),
                *(_whether([run[key] for run in runs[name]]) for key in ("reloads", "exact")),
            ]
            for name in sorted(means, key=means.__getitem__, reverse=True)
        ]
        head = [f"{task}, {budget}, dense {found['dense'][task][metric]:.4f}", *(name for name, _, _ in columns)]
        made.append(_table([*head, "reloads", "exact"], rows))
        better = [name for name, mean in means.items() if mean > means.get("niwaki", mean)]
        below += [f"- {task}, {budget}: below {', '.join(better)}"] if better else []
    said = ["Where Niwaki is below a peer:", "", *below] if below else ["Niwaki is below no peer in these tables."]
    left = [*failed, *(f"{name}: {why}" for name, why in found["left_out"].items())]
    return [*made, said, ["What did not run:", "", *(f"- {line}" for line in left)] if left else []]


def engines() -> list[list[str]]:
    """A table for each task: dense and pruned in each engine and number of bits, each timed beside its own dense."""
    made = []
    for script, task in (("engines_sst2", "SST-2"), ("engines_wnut17", "WNUT-17")):
        found = json.loads((RESULTS / f"{script}.json").read_text("utf-8"))
        runs, metric = found["runs"], next(iter(found["dense"]["onnxruntime none"]["quality"]))
        rows = [
            [
                where,
                f"{dense['quality'][metric]:.4f}",
                _cell([run["pruned"][where]["quality"][metric] for run in runs], 4),
                f"{dense['in_float32']}",
                f"{dense['bytes'] / 1e6:.1f}",
                _cell([run["pruned"][where]["bytes"] / 1e6 for run in runs], 1),
                *(_cell([run[f"pruned / dense, {where}"][shape] for run in runs], 2) for shape in SHAPES),
            ]
            for where, dense in found["dense"].items()
        ]
        figures = [f"dense {metric}", f"pruned {metric}", "matrices in float32", "dense MB", "pruned MB"]
        made.append(_table([task, *figures, *(f"pruned / dense {shape}" for shape in SHAPES)], rows))
    return made


def results() -> str:
    """The table of README.md: accuracy on SST-2 by what was asked, means of the seeds, and what stands beside it."""

    def accuracy(script: str, **asked: Any) -> str:
        runs = [run for run in runs_of(script) if all(run.get(key) == value for key, value in asked.items())]
        return f"{statistics.mean(map(quality, runs)):.4f}"

    torch = [run["torch"]["32x64"] for run in runs_of("speed") if run["budget"] == {"flops": 0.5}]
    onnx = [run["pruned / dense, onnxruntime none"]["32x64"] for run in runs_of("engines_sst2")]
    dense = json.loads((RESULTS / "structured.json").read_text("utf-8"))["dense"]["accuracy"]
    rows = [["nothing (dense, with its LoRA adapter)", f"{dense:.4f}", ""]]
    speeds = f"{statistics.mean(torch):.2f}x as fast, {statistics.mean(onnx):.2f}x in ONNX Runtime"
    fast = f"{speeds} (2 threads, batch 32, length 64)"
    for kept, beside in ((0.5, fast), (0.3, ""), (0.2, "")):
        rows.append([f"`prune structured --flops {kept}`", accuracy("structured", flops=kept), beside])
    for share in (0.7, 0.8, 0.9):
        own = accuracy("layer_adaptive", weight_score="alps", sparsity=share)
        published = f"uniform SparseGPT {accuracy('sparsegpt_uniform', sparsity=share)}"
        rows.append([f"`prune layer-adaptive --sparsity {share}`", own, published])
    for share in (0.8, 0.9):
        own = accuracy("dynamic", method="default", sparsity=share)
        static = f"static SparseGPT mask trained alike {accuracy('dynamic', method='static sparsegpt', sparsity=share)}"
        rows.append([f"dynamic, {share}, three epochs on 6,000 rows", own, static])
    return "\n".join([*_table(["asked", "accuracy", "beside it"], rows), ""])


def with_results(text: str) -> str:
    """The README with the table as it is now."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{results()}\n{MARKS[1]}{after}"


def runs_of(script: str) -> list[Any]:
    """The runs of one file of results; none where it is not there."""
    path = RESULTS / f"{script}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []


def quality(run: Any) -> float:
    """The first figure of a run: the usual one of its task."""
    return next(iter(run["quality"].values()))


def _section(title: str, tables: list[list[str]]) -> list[str]:
    lines = [line for table in tables if table for line in (*table, "")]
    return [f"## {title}", "", *lines] if lines else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _whether(values: list[bool]) -> str:
    return "yes" if all(values) else "in part" if any(values) else "no"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        shown = {name: f"{x:g}" if isinstance(x, int | float) else x for name, x in value.items()}
        return " ".join(f"--{name.replace('_', '-')} {x}" for name, x in shown.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)


if __name__ == "__main__":
    main()
