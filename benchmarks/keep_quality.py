"""Whether what `--keep-quality` promises on training rows that are held out also holds on the evaluation data.

    python benchmarks/keep_quality.py --run SST-2 MODEL train.tsv dev.tsv accuracy --run CoLA ... [--seeds 0 1 2]

Each run is the command as it is typed: `niwaki prune structured --keep-quality 0.99`. Said are the budget that was
found, the share of the dense model's metric that was kept on the rows that were held out, and the share on the
evaluation data; a `miss` is a run that promised the first and lacks it in the second. A run that is in the JSON already
is not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, environment, is_done, note
from niwaki.evaluate.quality import share_kept


def main() -> None:
    """Make all runs, each noted in the JSON as soon as it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--run", nargs=5, action="append", required=True, metavar=("NAME", "MODEL", "TRAIN", "EVAL", "METRIC")
    )
    parser.add_argument("--method", default="structured", choices=["structured", "layer-adaptive"])
    parser.add_argument("--keep-quality", type=float, default=0.99)
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2048, help="calibration rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "keep_quality.json")
    asked = parser.parse_args()
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {}
    names = [name for name, *_ in asked.run]
    found = {**environment(asked), "runs": before.get("runs", [])}
    found["asked"]["run"] = names
    for (name, *inputs), seed in itertools.product(asked.run, asked.seeds):
        run = {
            "task": name,
            "method": asked.method,
            "keep_quality": asked.keep_quality,
            "tries": asked.tries,
            "rows": asked.rows,
            "seed": seed,
        }
        if not is_done(found, run):
            note(found, run | searched(asked, seed, *inputs), asked.out)
    found["misses"] = sum(run["miss"] for run in found["runs"])
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def searched(asked: argparse.Namespace, seed: int, model: str, train: str, test: str, metric: str) -> dict[str, Any]:
    """One search, and what it is worth on the evaluation data; where no budget kept enough, that."""
    with tempfile.TemporaryDirectory(prefix="niwaki-keep-") as place:
        words = ["prune", asked.method, "--model", model, "--train-data", train, "--eval-data", test]
        words += ["--metric", metric, "--keep-quality", str(asked.keep_quality), "--tries", str(asked.tries)]
        words += ["--calibration-samples", str(asked.rows), "--seed", str(seed), "--out", f"{place}/kept"]
        done = subprocess.run(
            [sys.executable, "-m", "niwaki", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        if done.returncode == 2 and "keep_quality must be at most" in done.stderr:
            return {"found": None, "said": done.stderr.strip().splitlines()[-1], "miss": False}
        if done.returncode:
            raise SystemExit(done.stderr)
        result = json.loads((Path(place) / "kept" / "result.json").read_text(encoding="utf-8"))
    (stage,) = result["stages"]
    search = stage["keep_quality"]
    dense, pruned = (result[side]["quality"][metric] for side in ("dense", "pruned"))
    share, budget = share_kept(metric, dense, pruned), stage["budget"]
    taken = next(each for each in search["tries"] if each[budget["kind"]] == budget["requested"])
    return {
        "found": {budget["kind"]: budget["requested"]},
        "held_out_rows": search["rows"],
        "held_out_share": taken["share"],
        "dense": dense,
        "pruned": pruned,
        "share": share,
        "miss": share < asked.keep_quality,
        "speedup": {way: each["speedup"] for way, each in result["latency"].items() if isinstance(each, dict)},
        "budgets_tried": [each[budget["kind"]] for each in search["tries"]],
    }


if __name__ == "__main__":
    main()
