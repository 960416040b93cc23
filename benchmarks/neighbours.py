"""What waiting threads cost: GNU OpenMP's own policy against OMP_WAIT_POLICY=PASSIVE, alone and beside a busy process.

    python benchmarks/neighbours.py --threads 2

Each policy has a process of its own, with a random model of MiniLM's shape; the two work in turn (A B A B ...), a turn
is `train` (forward and backward passes, batches of 32 x 32) or `single` (forward passes of 1 x 16). `passive` is
the median over the rounds of the seconds of a turn under PASSIVE over those under the default: below 1, PASSIVE is
faster. `busy` counts processes beside them that do nothing but turn a Python loop, `load` is the load over the
last minute, of others too. Needs no files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

from common import RESULTS, environment, write

TURNS = {"train": (32, 32, 1), "single": (1, 16, 12)}
"""Kind -> rows, tokens, passes of a turn."""


def worker() -> None:
    """For each line on standard input, which names a kind of turn: take it, and print its seconds."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    shape = DistilBertConfig(vocab_size=1000, dim=384, n_layers=6, n_heads=12, hidden_dim=1536)
    model = DistilBertForSequenceClassification(shape).eval()
    for line in sys.stdin:
        rows, length, passes = TURNS[line.strip()]
        ids = torch.randint(5, 1000, (rows, length))
        started = time.perf_counter()
        for _ in range(passes):
            if line.strip() == "train":
                model(input_ids=ids).logits.sum().backward()
            else:
                with torch.no_grad():
                    model(input_ids=ids)
        print(time.perf_counter() - started, flush=True)


def started(policy: str | None, threads: int) -> subprocess.Popen[str]:
    """A worker under a policy."""
    environ = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environ |= {"OMP_NUM_THREADS": str(threads)} | ({"OMP_WAIT_POLICY": policy} if policy else {})
    words = [sys.executable, __file__, "--worker"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)


def turn(process: subprocess.Popen[str], kind: str) -> float:
    """Seconds of one turn."""
    print(kind, file=cast(IO[str], process.stdin), flush=True)
    return float(cast(IO[str], process.stdout).readline())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "neighbours.json")
    parser.add_argument("--worker", action="store_true")
    asked = parser.parse_args()
    if asked.worker:
        worker()
        return
    found = environment(asked) | {"threads": asked.threads, "runs": []}
    with ExitStack() as stack:
        workers = [started(policy, asked.threads) for policy in (None, "PASSIVE")]
        stack.callback(lambda: [process.kill() for process in workers])
        for busy in asked.busy:
            with ExitStack() as beside:
                for _ in range(busy):
                    beside.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
                for kind in TURNS:
                    times = [[turn(process, kind) for process in workers] for _ in range(asked.rounds + 1)][1:]
                    run = {"busy": busy, "kind": kind, "rounds": asked.rounds}
                    run["load"] = round(os.getloadavg()[0], 1)
                    run["passive"] = round(statistics.median(passive / usual for usual, passive in times), 3)
                    found["runs"].append(run)
                    print(run, flush=True)
    write(asked.out, found)


if __name__ == "__main__":
    main()
