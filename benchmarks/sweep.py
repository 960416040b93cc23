"""A sweep of eight points against eight single runs, and one that is killed half-way and given again.

    python benchmarks/sweep.py --model M --train-data T --eval-data E [--rows 2048]

Each is the command as it is typed, in a process of its own. Said are ratios of time, and of the processors' time, which
other work on the machine changes less; whether `sweep.json` is the same but for what the clock said, whether the points
are the models of the single runs byte for byte, and how often the dense model was measured and observed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, environment, write

FLOPS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)


def main() -> None:
    """Run all and write the JSON."""
    parser = argparse.ArgumentParser()
    for name in ("model", "train-data", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=2048, help="calibration rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep.json")
    asked = parser.parse_args()
    flags = [
        *("--model", asked.model, "--train-data", asked.train_data, "--eval-data", asked.eval_data),
        *("--calibration-samples", str(asked.rows)),
    ]
    sweep = ["sweep", "structured", *flags, "--flops", *map(str, FLOPS)]
    with tempfile.TemporaryDirectory(prefix="niwaki-sweep-") as place:
        whole, halved = Path(place) / "whole", Path(place) / "halved"
        spent, said = run([*sweep, "--out", str(whole)])
        killed, told = kill_and_run([*sweep, "--out", str(halved)], halved)
        singles, same = Spent(), 0
        for flops in FLOPS:
            out = Path(place) / "single"
            single, _ = run(["prune", "structured", *flags, "--flops", str(flops), "--out", str(out), "--overwrite"])
            singles += single
            point = whole / "points" / f"structured-flops-{flops:g}-seed-0"
            same += weights(point) == weights(out)
        first, second = (without_times(folder) for folder in (whole, halved))
        found = {
            "rows": asked.rows,
            "points": len(FLOPS),
            "time_of_single_runs": spent.seconds / singles.seconds,
            "processor_time_of_single_runs": spent.processor / singles.processor,
            "equal_when_killed": first == second,
            "points_done_before_the_kill": killed,
            "points_equal_to_single_runs": same,
            "dense_measured": said.count("dense: quality"),
            "observed": observed(said),
            "dense_measured_after_the_kill": told.count("dense: quality"),
            "observed_after_the_kill": observed(told),
            "frontier": json.loads((whole / "sweep.json").read_text())["frontier"],
        }
    write(asked.out, {**environment(asked), **found})


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "niwaki", *words]


@dataclass(frozen=True)
class Spent:
    """What commands took: seconds by the clock, and of all processors."""

    seconds: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.processor + other.processor)


def run(words: list[str]) -> tuple[Spent, str]:
    """What the command took, and what it said on standard error."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command(words), check=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    after = os.times()
    processor = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return Spent(time.perf_counter() - started, processor), done.stderr


def kill_and_run(words: list[str], out: Path) -> tuple[int, str]:
    """Kill the command when half of its points are there, and give it again: how many were, what it said then."""
    process = subprocess.Popen(command(words), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and done(out) < len(FLOPS) // 2:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = done(out)
    _, said = run(words)
    return before, said


def observed(said: str) -> int:
    """How often that was begun; a long one says its tenths, too."""
    return len(re.findall(r"^observe: \d+ batches$", said, re.MULTILINE))


def done(out: Path) -> int:
    return len(list(out.glob("points/*/result.json")))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def without_times(folder: Path) -> dict[str, Any]:
    """`sweep.json` but for what the clock said."""
    found = json.loads((folder / "sweep.json").read_text())
    del found["timed"]
    return found


if __name__ == "__main__":
    main()
