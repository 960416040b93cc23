"""One process against two, each on one thread: how many times as fast two calibrate, refit, recover and measure.

    python benchmarks/processes.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv --rows 512

Both groups of processes read model and data once and then work in turn, first one and then two, in every other round
the other way round; the same command again adds rounds. A row has the seconds of each, which hold no reading or
writing, and what is largest of the differences between the weights, or figures, that came out.
"""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import niwaki
from common import Bench, arguments, note, resumed
from niwaki.processes import is_first, meet

GROUPS = {"one": 1, "two": 2}


def main() -> None:
    parser = arguments("processes", seeds=[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--what", nargs="+", default=list(WORK), choices=list(WORK))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        work(asked)
        return
    found = resumed(asked)
    found["runs"] = [run for run in found.get("runs", []) if "round" in run]
    first = 1 + max((run["round"] for run in found["runs"]), default=-1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        groups = {name: stack.enter_context(Group(count, folder / name)) for name, count in GROUPS.items()}
        for number in range(first, first + asked.rounds):
            for what in asked.what:
                order = list(groups)[:: -1 if number % 2 else 1]
                seconds = {name: groups[name].turn(what) for name in order}
                one, two = (load_file(folder / name) for name in GROUPS)
                row = {"what": what, "round": number, **seconds, "speedup": seconds["one"] / seconds["two"]}
                note(found, row | {"largest_difference": difference(one, two)}, asked.out)


def difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float | None:
    """The largest of any two numbers; None where the shapes are others."""
    if any(value.shape != two[name].shape for name, value in one.items()):
        return None
    return max(float((value.double() - two[name].double()).abs().max()) for name, value in one.items())


class Group:
    """Processes that share the work of this script's arguments, started as a launcher would; a context."""

    def __init__(self, count: int, results: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", "NIWAKI_RESULTS": str(results)}
        self.members = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def __enter__(self) -> Group:
        self._hear()
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            cast("IO[str]", member.stdin).close()
        for member in self.members:
            member.wait()

    def turn(self, what: str) -> float:
        """Seconds of that work."""
        for member in self.members:
            print(what, file=member.stdin, flush=True)
        return self._hear()

    def _hear(self) -> float:
        """What each says when it is done; the longest."""
        return max(float(cast("IO[str]", member.stdout).readline()) for member in self.members)


def work(asked: Any) -> None:
    """Do what each line on standard input names, and print the seconds; the first process writes what came out."""
    meet()
    bench = Bench.of(asked)
    model = bench.model()
    print(0.0, flush=True)
    for line in sys.stdin:
        own = copy.deepcopy(model)
        started = time.perf_counter()
        found = WORK[line.strip()](own, bench, asked)
        seconds = time.perf_counter() - started
        if is_first():
            save_file(
                {name: value.detach().contiguous() for name, value in found.items()}, os.environ["NIWAKI_RESULTS"]
            )
        print(seconds, flush=True)


def pruned(config: Any) -> Callable[[Any, Bench, Any], dict[str, Tensor]]:
    """Work that prunes by a config."""

    def prune(model: Any, bench: Bench, asked: Any) -> dict[str, Tensor]:
        niwaki.prune_(model, config, bench.batches(asked.rows, asked.seeds[0]))
        return model.state_dict()

    return prune


def measured(model: Any, bench: Bench, asked: Any) -> dict[str, Tensor]:
    """Quality on the evaluation data."""
    return {name: torch.tensor(value) for name, value in bench.quality(model).items()}


CHEAP: dict[str, Any] = {"head_score": "random", "neuron_score": "random", "repair": "none"}
WORK = {
    "structured": pruned(niwaki.Structured(flops=0.5)),
    "layer-adaptive": pruned(niwaki.LayerAdaptive(sparsity=0.7)),
    "recovery": pruned(niwaki.Structured(flops=0.5, recover_epochs=1, **CHEAP)),
    "evaluation": measured,
}


if __name__ == "__main__":
    main()
