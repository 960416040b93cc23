"""A sweep of eight points against eight single runs, and one that is killed half-way and given again.

    python benchmarks/sweep.py --model M --train-data T --eval-data E [--rows 2048]

Each is the command as it is typed, in a process of its own, and noted in the JSON as soon as it is done: a run that is
there already is not made again. Said are ratios of time, and of the processors' time, which other work on the machine
changes less; whether `sweep.json` is the same but for what the clock said, whether the points are the models of the
single runs byte for byte, and how often the dense model was measured and observed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, is_done, note, resumed, write

FLOPS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)
WHAT = ("single", "sweep", "killed sweep")


def main() -> None:
    """Make all runs that are not noted yet, and say what they come to."""
    parser = argparse.ArgumentParser()
    for name in ("model", "train-data", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=2048, help="calibration rows")
    parser.add_argument("--what", nargs="+", default=list(WHAT), choices=WHAT, help="runs to make")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep.json")
    asked = parser.parse_args()
    found = resumed(asked)
    flags = [
        *("--model", asked.model, "--train-data", asked.train_data, "--eval-data", asked.eval_data),
        *("--calibration-samples", str(asked.rows)),
    ]
    runs = [{"what": "single", "flops": flops} for flops in FLOPS] + [{"what": "sweep"}, {"what": "killed sweep"}]
    for run in runs:
        if run["what"] in asked.what and not is_done(found, run):
            with tempfile.TemporaryDirectory(prefix="niwaki-sweep-") as place:
                note(found, run | made(run, flags, Path(place) / "out"), asked.out)
    if all(is_done(found, run) for run in runs):
        write(asked.out, found | compared(found["runs"]))


def made(run: dict[str, Any], flags: list[str], out: Path) -> dict[str, Any]:
    """What one run took, and digests of what it wrote."""
    if run["what"] == "single":
        words = ["prune", "structured", *flags, "--flops", str(run["flops"]), "--out", str(out)]
        return spent(words)[0] | {"sha256": digest((out / "model.safetensors").read_bytes())}
    words = ["sweep", "structured", *flags, "--flops", *map(str, FLOPS), "--out", str(out)]
    before = {"points_before": killed(words, out)} if run["what"] == "killed sweep" else {}
    took, said = spent(words)
    found = json.loads((out / "sweep.json").read_text())
    del found["timed"]
    return {
        **took,
        **before,
        "dense_measured": said.count("dense: quality"),
        "observed": len(re.findall(r"^observe: \d+ batches$", said, re.MULTILINE)),  # a long one says its tenths, too
        "points": {point["budget"]["requested"]: point["sha256"] for point in found["points"]},
        "sha256": digest(json.dumps(found).encode()),
        "frontier": found["frontier"],
    }


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the sweep is beside the single runs, and beside one that was killed."""
    singles = [run for run in runs if run["what"] == "single"]
    whole, halved = (next(run for run in runs if run["what"] == what) for what in WHAT[1:])
    points = {float(flops): sha256 for flops, sha256 in whole["points"].items()}
    return {
        "time_of_single_runs": whole["seconds"] / sum(run["seconds"] for run in singles),
        "processor_time_of_single_runs": whole["processor"] / sum(run["processor"] for run in singles),
        "points_equal_to_single_runs": sum(points[run["flops"]] == run["sha256"] for run in singles),
        "equal_when_killed": whole["sha256"] == halved["sha256"],
    }


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "niwaki", *words]


def spent(words: list[str]) -> tuple[dict[str, float], str]:
    """Seconds that the command took by the clock and of the processors, and what it said on standard error."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command(words), check=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    after = os.times()
    processor = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return {"seconds": time.perf_counter() - started, "processor": processor}, done.stderr


def killed(words: list[str], out: Path) -> int:
    """Kill the command when half of its points are there: how many were."""
    process = subprocess.Popen(command(words), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and done(out) < len(FLOPS) // 2:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return done(out)


def done(out: Path) -> int:
    return len(list(out.glob("points/*/result.json")))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
