"""kill -9 at random moments: `--out` is whole old, whole new or absent, and the next run ends in the same bytes.

    python tests/stress/kill.py --kills 1000

Each run is a fork of one process that has imported everything, on tiny random models. Half of the runs are killed after
a random time, half at a random file operation (mkdir, rename, open, remove), so that the moments in which files get
their names are met, too. After each kill the content of `--out` is compared with what was there before and with an
undisturbed run's; the next run on it is killed as well, or (one in four) left to its end, after which all bytes must be
those of the undisturbed run but for measured times, and nothing may be left beside `--out`. The two seeds of a recipe
take turns, so that old and new differ. With `--processes 2` a run is one of several processes, of which one, drawn, is
killed, and the others end because it is gone. Each `ROW` kills are a row of the log, written as they are done: the same
command goes on from there until there are as many as are asked. Replacing in place, where folders cannot change places,
is left to `tests/unit/test_folder.py`, which kills at every file operation.
"""

# ruff: noqa: E402 - the environment is set before PyTorch is loaded

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "benchmarks")]

import torch

import niwaki
import niwaki.evaluate.latency
import niwaki.methods.dynamic.plots
import niwaki.run.recipe
from common import RESULTS, note, resumed
from helpers_command import MEASURED, free_port, launched_as
from helpers_text import letter_tokenizer
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Recipe, Stage, Structured
from niwaki.run import run_recipe
from tiny import tiny

DYNAMIC = DynamicSparsityTraining(sparsity=0.6, epochs=4, interval=1, window=1, reach=0.5, stop=0.9)
CASES: dict[str, tuple[Stage, ...]] = {
    "structured": (Finetune(lora_rank=4), Structured(flops=0.6, recover_epochs=1)),
    "layer-adaptive": (LayerAdaptive(sparsity=0.3), LayerAdaptive(sparsity=0.5, recover_epochs=1)),
    "dynamic": (DYNAMIC, Structured(flops=0.8)),
}
ROW = 10
"""Kills of a row of the log."""
OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open")


def fill(place: Path) -> None:
    """Write a model, its tokenizer and data into a new folder, and an empty one for the runs."""
    (place / "runs").mkdir(parents=True)
    tokenizer = letter_tokenizer()
    niwaki.save(tiny(labels=2, layers=2), place / "model", tokenizer)
    draw = random.Random(0)
    for name, rows in (("train", 24), ("eval", 8)):
        texts = [" ".join(draw.choices("abcdefghij", k=draw.randint(3, 9))) for _ in range(rows)]
        lines = [f"{text}\t{number % 2}" for number, text in enumerate(texts)]
        (place / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")


def started(
    place: Path, case: str, seed: int, processes: int, operation: int | None = None, count_to: Path | None = None
) -> list[int]:
    """Fork a run of a case, the first process of which is killed at so many file operations; its processes."""
    port, found = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if not child:
            if processes > 1:
                os.environ |= launched_as(rank, processes, port)
            run(place, case, seed, *((None, None) if rank else (operation, count_to)))
        found.append(child)
    return found


def run(place: Path, case: str, seed: int, operation: int | None, count_to: Path | None) -> NoReturn:
    """Be the process that does a case."""
    seen = 0

    def look(event: str, arguments: Any) -> None:
        nonlocal seen
        if event in OPERATIONS and (event != "open" or arguments[1] not in ("r", "rb", None)):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sys.addaudithook(look)
        data = {"train_data": str(place / "train.tsv"), "eval_data": str(place / "eval.tsv")}
        model, out = str(place / "model"), str(place / "runs" / "out")
        run_recipe(
            Recipe(model=model, out=out, **data, stages=CASES[case], seed=seed, batch_size=8, overwrite=True),
            quiet=True,
        )
        status = 0
        if count_to is not None:
            told = {"operations": seen, "modules": list(sys.modules)}
            count_to.write_text(json.dumps(told), encoding="utf-8")
    finally:
        os._exit(status)


def ended(children: list[int]) -> list[int]:
    """Exit status of each process, negative where a signal ended it."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def content(folder: Path) -> dict[str, str] | None:
    """File -> hash of its bytes; files with times in them only have to be there. None without the folder."""
    if not folder.is_dir():
        return None
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    hashed = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return {name: "" if name in MEASURED else found for name, found in hashed.items()}


def undisturbed(place: Path, case: str, seed: int, processes: int) -> dict[str, Any]:
    """Content, seconds and file operations of a run that nobody kills."""
    out, counted = place / "runs" / "out", place / "count"
    begun = time.perf_counter()
    assert not any(ended(started(place, case, seed, processes, count_to=counted))), f"{case} does not run"
    found = {"seconds": time.perf_counter() - begun, "is": content(out), **json.loads(counted.read_text("utf-8"))}
    for name in found.pop("modules"):  # so that no fork has to import what this one needed
        with suppress(Exception):
            import_module(name)
    shutil.rmtree(out)
    return found


class Trial:
    """Runs of one case that are killed one after the other."""

    def __init__(self, place: Path, case: str, processes: int) -> None:
        self.place, self.case, self.processes, self.draw = place, case, processes, random.Random()
        self.runs, self.out = place / "runs", place / "runs" / "out"
        fill(place)
        undisturbed(place, case, 0, processes)  # which imports all
        self.whole = [undisturbed(place, case, seed, processes) for seed in (0, 1)]
        self.before: dict[str, str] | None = None
        self.seed, self.found, self.failures = 0, Counter[str](), list[str]()

    def kill(self) -> None:
        """Kill one run and look at what it left."""
        whole, killed = self.whole[self.seed], -signal.SIGKILL
        if self.draw.random() < 0.5:
            children = started(self.place, self.case, self.seed, self.processes)
            time.sleep(self.draw.random() * whole["seconds"])
            os.kill(self.draw.choice(children), signal.SIGKILL)
        else:
            at = 1 + self.draw.randrange(whole["operations"])
            children = started(self.place, self.case, self.seed, self.processes, at)
        statuses = ended(children)
        self.found["kills" if killed in statuses else "ended before"] += 1
        now = content(self.out)
        if now == whole["is"] and now != self.before:
            self.found["new"] += 1
        elif now == self.before:
            self.found["absent" if now is None else "old"] += 1
        else:
            self.failures.append(f"{self.case}: a mixture in out: {sorted(now or ())}")
        if self.processes == 1 and statuses not in ([0], [killed]):
            self.failures.append(f"{self.case}: exit status {statuses[0]} after a kill")
        kept = self.runs / ".out.niwaki" / "kept"
        self.found[f"stages kept: {len(list(kept.glob('*-*')))}"] += 1

    def finish(self) -> None:
        """Let a run come to its end, and compare."""
        if any(ended(started(self.place, self.case, self.seed, self.processes))):
            self.failures.append(f"{self.case}: the next run failed")
        elif content(self.out) != self.whole[self.seed]["is"]:
            self.failures.append(f"{self.case}: other bytes than those of an undisturbed run")
        if (left := sorted(path.name for path in self.runs.iterdir())) != ["out"]:
            self.failures.append(f"{self.case}: {left} is left")
        self.found["ends"] += 1
        if self.draw.random() < 0.5:
            shutil.rmtree(self.out)
        self.before, self.seed = content(self.out), 1 - self.seed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1, help="of each run")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    hurry()
    begun, before = time.perf_counter(), resumed(asked)
    rows = [row for row in before.get("runs", []) if "row" in row]  # not those of an older script
    found = {name: before[name] for name in ("versions", "machine", "threads", "asked")} | {"runs": rows}
    with tempfile.TemporaryDirectory(prefix="niwaki-kill-") as folder:
        os.environ["NIWAKI_CACHE"] = str(Path(folder) / "cache")
        trials = [Trial(Path(folder) / case, case, asked.processes) for case in CASES]
        while (total := sum(row["kills"] for row in rows)) < asked.kills:
            note(found, row_of(trials, len(rows), min(ROW, asked.kills - total)), asked.out)
            if asked.seconds is not None and time.perf_counter() - begun > asked.seconds:
                break
    sys.exit(any(row["failures"] for row in rows))


def hurry() -> None:
    """Leave out what takes half of a run and touches no file: rounds of timing, and drawing."""
    niwaki.evaluate.latency._LONG = 0.0  # type: ignore[attr-defined]
    niwaki.run.recipe.page = lambda results: "<p>a page</p>"  # type: ignore[attr-defined]
    for name in ("plot_schedule", "plot_history"):
        setattr(niwaki.methods.dynamic.plots, name, lambda what, path: path.write_bytes(b"a picture"))


def row_of(trials: list[Trial], number: int, kills: int) -> dict[str, Any]:
    """Do so many kills, drawn by the number of their row, and let a run of each case come to its end; what was seen."""
    draw = random.Random(number)
    for trial in trials:
        trial.draw, trial.found, trial.failures = draw, Counter(), []
    while sum(trial.found["kills"] for trial in trials) < kills:
        trial = trials[draw.randrange(len(trials))]
        trial.kill()
        if draw.random() < 0.25:
            trial.finish()
    for trial in trials:
        trial.finish()
    seen = sum((trial.found for trial in trials), Counter[str]())
    failures = [failure for trial in trials for failure in trial.failures]
    by_case = {trial.case: trial.found["kills"] for trial in trials}
    return {"row": number, **dict(sorted(seen.items())), "kills by case": by_case, "failures": failures}


if __name__ == "__main__":
    main()
