"""One process against two, each on one thread: how many times as fast two calibrate, refit and recover.

    python benchmarks/processes.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --rows 512

The same command is started alone and by torchrun in turn; compared are the seconds of the stage in `result.json`, which
hold no reading, measuring or writing, and the weights that come out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common import arguments, environment, write

START = {
    "one": [sys.executable, "-m", "niwaki"],
    "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "niwaki"],
}
ASKED = {
    "structured": ["structured", "--flops", "0.5"],
    "layer-adaptive": ["layer-adaptive", "--sparsity", "0.7"],
    "recovery": ["structured", "--flops", "0.5", "--repair", "none", "--recover-epochs", "1"],
}


def main() -> None:
    parser = arguments("processes", seeds=[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--what", nargs="+", default=list(ASKED), choices=list(ASKED))
    asked = parser.parse_args()
    found = {**environment(asked), "runs": []}
    for what in asked.what:
        with tempfile.TemporaryDirectory() as place:
            taken: dict[str, list[float]] = {name: [] for name in START}
            for number in range(asked.rounds):
                for name in (*START,) if number % 2 == 0 else (*START,)[::-1]:
                    taken[name].append(_seconds(asked, what, name, Path(place) / name))
            weights = [load_file(Path(place) / name / "model.safetensors") for name in START]
        apart = max(float((one - other).abs().max()) for one, other in zip(*(w.values() for w in weights), strict=True))
        pairs = [one / two for one, two in zip(*taken.values(), strict=True)]
        run = {"what": what, "speedup": statistics.median(pairs), "pairs": pairs, "largest_difference": apart}
        print(json.dumps(run), flush=True)
        found["runs"].append(run)
        write(asked.out, found)


def _seconds(asked: Any, what: str, name: str, out: Path) -> float:
    command = [*START[name], "prune", *ASKED[what], "--model", asked.model, "--train-data", asked.train_data]
    command += ["--eval-data", asked.eval_data, "--calibration-samples", str(asked.rows), "--train-samples", "2048"]
    command += ["--seed", str(asked.seeds[0]), "--overwrite", "--quiet", "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    (stage,) = json.loads((out / "result.json").read_text(encoding="utf-8"))["stages"]
    return stage["seconds"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
