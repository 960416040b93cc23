"""Pictures of a schedule and of a history, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from niwaki.drawing import load_matplotlib
from niwaki.methods.dynamic.history import HISTORY, Update, write_history
from niwaki.methods.dynamic.schedules import Schedule

SCHEDULE_PICTURE = "dynamic-schedule.png"
HISTORY_PICTURE = "dynamic-history.png"


def plot_schedule(schedule: Schedule, path: Path) -> None:
    """Sparsity by step, and the share of active weights that each update may replace."""
    figure, (above, below) = _figure(2)
    steps = [0, *schedule.updates, schedule.steps]
    above.step(steps, [schedule.sparsity(step) for step in steps], where="post")
    above.set_ylabel("sparsity")
    below.plot(list(schedule.updates), [schedule.replaced(t) for t in schedule.updates], ".")
    below.set(xlabel="optimizer step", ylabel="share replaced", xlim=above.get_xlim())
    _write(figure, path)


def plot_history(history: Sequence[Update], path: Path) -> None:
    """Weights dropped and grown by update, the distance from the first mask, and sparsity over linears and time."""
    figure, (churn, distance, layers) = _figure(3)
    steps = sorted({row.step for row in history})
    names = list(dict.fromkeys(row.linear for row in history))
    at = {(row.step, row.linear): row for row in history}
    for key in ("dropped", "grown", "regrown"):
        churn.plot(steps, [sum(getattr(at[step, name], key) for name in names) for step in steps], label=key)
    churn.set_ylabel("weights")
    churn.legend()
    for name in names:
        distance.plot(steps, [at[step, name].distance for step in steps], linewidth=0.7)
    distance.set_ylabel("distance from\nthe first mask")
    picture = layers.imshow(
        [[at[step, name].sparsity for step in steps] for name in names], aspect="auto", vmin=0, vmax=1
    )
    layers.set_yticks(range(len(names)), names, fontsize=4)
    layers.set_xticks(range(len(steps)), [str(step) for step in steps], fontsize=5)
    layers.set_xlabel("optimizer step")
    figure.colorbar(picture, ax=layers, label="sparsity")
    _write(figure, path)


def write_training(schedule: Schedule, history: Sequence[Update], folder: Path) -> None:
    """The history as JSON lines, and both pictures, into `folder`."""
    write_history(history, folder / HISTORY)
    plot_schedule(schedule, folder / SCHEDULE_PICTURE)
    if history:
        plot_history(history, folder / HISTORY_PICTURE)


def _figure(rows: int) -> tuple[Any, Any]:
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows)


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
