"""The pictures of docs/, drawn by matplotlib from the committed results: python benchmarks/pictures.py"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from niwaki.methods.dynamic.fractions import cosine
from niwaki.methods.dynamic.sparsities import cubic
from tables import RESULTS, ROOT, quality, runs_of

PICTURES = ROOT / "docs" / "pictures"
GREY, BLUE, ORANGE, GREEN, PINK = "#7f7f7f", "#0072b2", "#e69f00", "#009e73", "#cc79a7"
"""Okabe and Ito's colours, which the colour-blind tell apart; the grey reads on white and on black."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "niwaki",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
WORDS = 30522
"""Tokens of the MiniLM as it came."""
LINEARS = ("query", "key", "value", "output", "up", "down")


def main() -> None:
    with mpl.rc_context(STYLE):
        for draw in (structured, layer_adaptive, dynamic, vocabulary, claims):
            _save(draw(), draw.__name__)


def structured() -> Any:
    """What each layer keeps, and what that costs in accuracy."""
    figure, (heads, neurons, curve) = plt.subplots(1, 3, figsize=(10, 3.2))
    runs = [run for run in runs_of("structured") if run["seed"] == 0 and run["flops"] >= 0.2]
    for axes, kind, what in ((heads, "attention", "heads of 12"), (neurons, "ffn", "neurons of 1,536")):
        for offset, (run, colour) in enumerate(zip(runs, (BLUE, ORANGE, GREEN), strict=True)):
            kept = [run["kept"][f"layer.{layer}.{kind}"] for layer in range(6)]
            label = f"{run['flops']:g} of the FLOPs"
            axes.bar(np.arange(6) + 0.27 * (offset - 1), kept, 0.27, color=colour, label=label)
        axes.set(xlabel="layer", ylabel=f"{what}, kept", xticks=range(6))
    heads.set(ylim=(0, 15), yticks=range(0, 13, 4))
    heads.legend(fontsize=9)
    _means(curve, "structured", "flops", lambda run: True, "global threshold", BLUE)
    _means(curve, "scores", "flops", lambda run: run["head_score"] == "random", "random units, refitted", PINK)
    curve.set(xlabel="FLOPs kept", ylabel="accuracy, SST-2")
    curve.invert_xaxis()
    curve.legend(fontsize=9)
    return figure


def layer_adaptive() -> Any:
    """Where the zeros go, and what they cost in accuracy."""
    figure, (where, curve) = plt.subplots(1, 2, figsize=(10, 3.4))
    ours = [run for run in runs_of("layer_adaptive") if run["weight_score"] == "alps"]
    run = next(run for run in ours if run["sparsity"] == 0.8 and run["seed"] == 0)
    ratios = np.array([[run["ratios"][f"layer.{layer}.{name}"] for name in LINEARS] for layer in range(6)])
    where.imshow(ratios, cmap="cividis", vmin=0.4, vmax=1, aspect="auto")
    for (row, column), ratio in np.ndenumerate(ratios):
        where.text(column, row, f"{ratio:.2f}", ha="center", va="center", color="white" if ratio < 0.75 else "black")
    where.set(xticks=range(6), xticklabels=LINEARS, ylabel="layer", title="share of zeros, 0.8 in all")
    _means(curve, "layer_adaptive", "sparsity", lambda run: run["weight_score"] == "alps", "niwaki", BLUE)
    _means(curve, "sparsegpt_uniform", "sparsity", lambda run: True, "uniform SparseGPT", ORANGE)
    curve.set(xlabel="share of weights that are zero", ylabel="accuracy, SST-2")
    curve.legend(fontsize=9)
    return figure


def dynamic() -> Any:
    """The course of the masks, and the accuracy of masks that move beside those that do not."""
    figure, (course, bars) = plt.subplots(1, 2, figsize=(10, 3.6))
    way = np.linspace(0, 1, 201)
    course.plot(way, [cubic(min(1, at / 0.6), 0.0, 0.9) for at in way], color=BLUE, label="sparsity (cubic, 0.9)")
    replaced = [cosine(at / 0.75, 0.3) if at <= 0.75 else 0.0 for at in way]
    course.plot(way, replaced, color=ORANGE, label="active weights that may be replaced")
    course.set(xlabel="part of the training", ylim=(0, 1))
    course.legend(fontsize=9, loc="center right")
    methods = ("default", "within linears only", "rigl", "set", "gradual magnitude", "static sparsegpt")
    runs = [run for run in runs_of("dynamic") if run["sparsity"] == 0.9 and run["seed"] == 0]
    found = [next(run["held"]["accuracy"] for run in runs if run["method"] == name) for name in methods]
    bars.barh(methods[::-1], found[::-1], color=[GREY, GREY, GREY, GREY, GREEN, BLUE])
    bars.set(xlabel="held-out accuracy at 0.9 zeros, seed 0", xlim=(0.78, 0.87))
    for place, value in enumerate(found[::-1]):
        bars.text(value, place, f" {value:.3f}", va="center", fontsize=9)
    return figure


def vocabulary() -> Any:
    """How much of a model its embeddings are, and its accuracy, by the tokens that stay."""
    figure, (sizes, curve) = plt.subplots(1, 2, figsize=(10, 3.4))
    dense = json.loads((RESULTS / "vocabulary.json").read_text("utf-8"))["dense"] | {"kept": WORDS}
    trimmed = [run for run in runs_of("vocabulary") if run["flops"] is None and not run["vocabulary"].get("characters")]
    runs = [dense, *sorted(trimmed, key=lambda run: -run["kept"])]
    names = [f"{run['kept']:,}" for run in runs]
    embeddings = [4 * run["embedding_params"] / 1e6 for run in runs]
    others = [run["size_bytes"] / 1e6 - part for run, part in zip(runs, embeddings, strict=True)]
    sizes.barh(names[::-1], others[::-1], color=GREY, label="all else")
    sizes.barh(names[::-1], embeddings[::-1], left=others[::-1], color=BLUE, label="embeddings")
    sizes.set(xlabel="megabytes of the model", ylabel="tokens that stay")
    sizes.legend(fontsize=9, loc="lower right")
    curve.plot([run["kept"] for run in runs], [quality(run) for run in runs], "o-", color=BLUE)
    curve.set(xlabel="tokens that stay", ylabel="accuracy, SST-2, seed 0", ylim=(0.84, 0.89))
    curve.invert_xaxis()
    return figure


def claims() -> Any:
    """The layer scores of the first claim beside uniform and measured shares; the unit scores of the second."""
    figure, (layers, units) = plt.subplots(1, 2, figsize=(10, 3.6))

    def rule(allocation: str, score: str | None) -> Callable[[Any], bool]:
        wanted = {"weight_score": "sparsegpt", "allocation": allocation, "layer_score": score, "importance_power": 1.0}
        return lambda run: wanted.items() <= run.items()

    for allocation, score, label, colour in (
        ("search", None, "search (default)", BLUE),
        ("uniform", None, "uniform", GREY),
        ("inverse-importance", "output-gradient", "by output gradient (as claimed)", ORANGE),
        ("inverse-importance", "activation-magnitude", "by activation magnitude (as claimed)", PINK),
    ):
        _means(layers, "allocations", "sparsity", rule(allocation, score), label, colour)
    layers.set(xlabel="share of zeros (SparseGPT's weights, no refit)", ylabel="accuracy, SST-2", ylim=(0.35, 0.9))
    layers.legend(fontsize=9, loc="lower left")
    for heads, neurons, label, colour in (
        ("reconstruction", "reconstruction", "reconstruction (default)", BLUE),
        ("attention-variance", "activation", "attention variance, activation (as claimed)", ORANGE),
        ("random", "random", "random", GREY),
    ):
        pair = {"head_score": heads, "neuron_score": neurons}
        _means(units, "scores", "flops", lambda run, pair=pair: pair.items() <= run.items(), label, colour)
    units.set(xlabel="FLOPs kept (refitted alike)", xticks=(0.3, 0.4, 0.5), ylim=(0.72, 0.9))
    units.invert_xaxis()
    units.legend(fontsize=9, loc="lower left")
    return figure


def _means(axes: Any, script: str, key: str, of: Callable[[Any], bool], label: str, colour: str) -> None:
    """The mean over the seeds against `key`, and the range of the seeds behind it."""
    groups: dict[float, list[float]] = {}
    for run in filter(of, runs_of(script)):
        if key in run:
            groups.setdefault(run[key], []).append(quality(run))
    at = sorted(groups)
    axes.plot(at, [statistics.mean(groups[x]) for x in at], "o-", color=colour, label=label)
    axes.fill_between(at, [min(groups[x]) for x in at], [max(groups[x]) for x in at], color=colour, alpha=0.2, lw=0)


def _save(figure: Any, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
