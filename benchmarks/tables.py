"""The tables of README.md and docs/, made from the committed results: python benchmarks/tables.py"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from common import RESULTS

FIGURES = ("spearman", "micro_f1", "f1")
"""What a task is told by, where it has several metrics."""


def main() -> None:
    by_budget("structured", ("flops",), ("accuracy", _quality, 4), ("cost", lambda r: r["cost"], 1))
    keys = ("repair", "allocation", "weight_score", "sparsity")
    for script in (
        "layer_adaptive",
        "sparsegpt_uniform",
        "layer_adaptive_cola",
        "layer_adaptive_rte",
    ):
        by_budget(script, keys, ("quality", _quality, 4), ("KL", lambda r: r["kl"], 4))
    kl, forward = ("KL", lambda r: r["kl"], 4), ("forward passes", lambda r: r["passes"]["forward"], 1)
    by_budget("reconstruction", ("sparsity", "flops", "reconstruct"), ("accuracy", _quality, 4), kl, forward)
    by_budget("layer_adaptive_cost", ("sparsity",), ("cost", lambda r: r["cost"], 1))
    allocations()
    held = ("held-out", lambda r: r["held"]["accuracy"], 4)
    by_budget("dynamic", ("method", "interval", "sparsity"), ("accuracy", _quality, 4), held)
    by_budget("recovery", ("flops", "sparsity", "full"), ("accuracy", _quality, 4), ("KL", lambda r: r["kl"], 4))
    by_budget("scores", ("head_score", "neuron_score", "flops"), ("accuracy", _quality, 4))
    shapes = [(f"torch {shape}", lambda r, s=shape: r["torch"][s], 2) for shape in ("32x64", "1x16")]
    by_budget("speed", ("budget",), ("accuracy", _quality, 4), ("achieved", lambda r: r["achieved"], 3), *shapes)
    onnx = [(f"onnx {shape}", lambda r, s=shape: r["onnx"][s], 2) for shape in ("32x64", "1x16")]
    by_budget("speed", ("budget",), *onnx, only=lambda r: "onnx" in r)
    excess = ("excess nats", lambda r: r["excess"], 3)
    for script in ("decoders", "wikitext"):
        by_budget(script, ("kind", "share", "rule"), ("perplexity", lambda r: r["perplexity"], 2), excess)
    by_budget("cost", ("rows", "layers"), ("cost", lambda r: r["cost"], 1), ("growth", lambda r: r["growth"], 2))
    peak, over = ("peak MiB", lambda r: r["peak"], 0), ("over the rule", lambda r: r["over"], 2)
    by_budget("memory", ("layers", "width", "rows"), peak, over)
    seconds = ("seconds a block", lambda r: r["seconds_a_block"], 1)
    tasks()
    for what, columns in (
        ("sparsegpt", (("cost", lambda r: r["cost"], 1), peak, over)),
        ("blocks", (seconds, peak)),
        ("speed", (("prefill", lambda r: r["prefill"], 2), ("decode", lambda r: r["decode"], 2))),
    ):
        by_budget("mobilellm", ("what", "case"), *columns, only=lambda r, what=what: r["what"] == what)


def by_budget(
    script: str, keys: tuple[str, ...], *columns: tuple[str, Callable[[Any], float], int], only: Any = None
) -> None:
    """One row for each value of `keys`: mean and range over the seeds of every column."""
    path = RESULTS / f"{script}.json"
    if not path.is_file():
        return
    groups: dict[tuple[str, ...], list[Any]] = {}
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        if only is None or only(run):
            groups.setdefault(tuple(_text(run.get(key, "")) for key in keys), []).append(run)
    print(f"\n{script}\n\n| {' | '.join([*keys, *(name for name, _, _ in columns)])} |")
    print(f"| {' | '.join('---' for _ in (*keys, *columns))} |")
    for group, runs in groups.items():
        cells = [_cell([value(run) for run in runs], digits) for _, value, digits in columns]
        print(f"| {' | '.join([*group, *cells])} |")


def allocations() -> None:
    """One row for each allocation, one column for each weight score and sparsity: the mean over the seeds."""
    path = RESULTS / "allocations.json"
    if not path.is_file():
        return
    rows: dict[str, dict[tuple[str, float], list[float]]] = {}
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        power = run["importance_power"]
        shown = power if isinstance(power, str) else f"{power:g}"
        looked_at = f" {run['layer_score']}, power {shown}" if run["layer_score"] else ""
        cells = rows.setdefault(run["allocation"] + looked_at, {})
        cells.setdefault((run["weight_score"], run["sparsity"]), []).append(_quality(run))
    for weight_score in dict.fromkeys(score for cells in rows.values() for score, _ in cells):
        columns = sorted({s for cells in rows.values() for score, s in cells if score == weight_score})
        print(f"\n{weight_score}\n\n| allocation | {' | '.join(f'{s:g}' for s in columns)} |")
        print(f"| {' | '.join('---' for _ in ('', *columns))} |")
        for name, cells in rows.items():
            if all((weight_score, s) in cells for s in columns):
                means = [f"{statistics.mean(cells[weight_score, s]):.3f}" for s in columns]
                print(f"| {name} | {' | '.join(means)} |")


def tasks() -> None:
    """One table for each task: what is left of its figure, and how alike dense and pruned are, by budget and method."""
    path = RESULTS / "tasks.json"
    if not path.is_file():
        return
    for name, task in json.loads(path.read_text(encoding="utf-8"))["tasks"].items():
        groups: dict[tuple[str, str, str], list[Any]] = {}
        for run in task["runs"]:
            kept = f"flops {run['flops']:g}" if "flops" in run else f"sparsity {run['sparsity']:g}"
            groups.setdefault((kept, run["method"], str(run["recover_epochs"])), []).append(run)
        metric = next(figure for figure in (*FIGURES, *task["dense"]) if figure in task["dense"])
        like = next(iter(task["runs"][0]["fidelity"]))
        print(f"\n{name}, {metric}: dense {task['dense'][metric]:.4f}\n")
        print(f"| kept | method | recovery | {metric} | {like} |\n| --- | --- | --- | --- | --- |")
        for group, runs in sorted(groups.items()):
            cells = (_cell([run[key][of] for run in runs], 4) for key, of in (("quality", metric), ("fidelity", like)))
            print(f"| {' | '.join([*group, *cells])} |")


def _quality(run: Any) -> float:
    return next(iter(run["quality"].values()))


def _cell(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _text(value: Any) -> str:
    return " ".join(f"--{name} {share:g}" for name, share in value.items()) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
