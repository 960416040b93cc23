"""Niwaki and its peers: the same model, rows, budgets and clock.

    python benchmarks/peers/run.py --name sst2 --model MODEL --train-data train.tsv --eval-data dev.tsv

A peer is a file here with one function, `prune(model, batches, budget, seed)`, which gives the pruned model: a package
from PyPI as its own documentation runs it (`with_*.py`; `requirements.txt` has their names), or a method written from
its paper. All get the same model, adapters merged, the same calibration rows, and nobody trains. A peer whose package
is not installed is passed over with a word, so packages that cannot live together are run from environments of their
own, one after another: all runs come into one JSON, and one that it holds is not done again unless it failed.

Each run has a process of its own. `fidelity` is how alike dense and pruned model are on the evaluation data; `cost` the
processor's seconds of pruning over those of one forward-and-backward pass over the calibration rows just before (so
other work on the machine counts little; the log has the seconds); `peak_mib` the most memory while pruning above what
the process held with models and data (Linux); `speedup` the median of paired timings on random tokens; `reloads`
whether `from_pretrained` gives the same logits from what `save_pretrained` wrote, with Niwaki imported; `exact` whether
what is kept is what was asked, to within a head of the FLOPs, or a weight in each linear of the zeros.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(1, str(Path(__file__).parents[1]))

import niwaki
from common import arguments, forward_and_backward, is_done, note, resumed, write
from memory import peak_is_now, resident
from niwaki.adapters import merge_
from niwaki.anatomy import count, linears_of, sites_of, unit_flops, weight_of
from niwaki.data import Batches, mean_length, sample, without_labels
from niwaki.evaluate import fidelity, model_latency, quality
from tasks import rows_of

PEERS: dict[str, tuple[str, str | None, str]] = {
    "niwaki": ("with_niwaki", None, "flops sparsity"),
    "Kwon et al. 2022": ("kwon", None, "flops"),
    "K-prune": ("kprune", None, "flops"),
    "FLAP": ("flap", None, "flops"),
    "Torch-Pruning": ("with_torch_pruning", "torch-pruning", "flops"),
    "torch.nn.utils.prune": ("with_torch_prune", "torch", "sparsity"),
    "llm-compressor": ("with_llm_compressor", "llmcompressor", "sparsity"),
    "Neural Compressor": ("with_neural_compressor", "neural-compressor", "sparsity"),
    "NNCF": ("with_nncf", "nncf", "sparsity"),
}
"""Name -> its file here, the package that it needs, the budgets it can be given."""
LEFT_OUT = {
    "TextPruner 1.1.post2": "asks for a NumPy that does not build under Python 3.11",
    "SparseML 1.9.0": "at its end of life, and refuses to be built",
    "nn_pruning 0.1.2": "prunes only while it trains; here nobody trains",
    "Neural Compressor's retrain-free pruner": "the mask search of Kwon et al., which is here with its tuning",
}
"""Package -> why it has no file here."""


@dataclass(frozen=True)
class Job:
    """One run, as it is handed to its process."""

    peer: str
    budget: dict[str, float]
    seed: int
    model: str
    calibration: list[dict[str, torch.Tensor]]
    tests: Batches
    metric: str | None
    rounds: int


def main() -> None:
    parser = arguments("peers")
    parser.add_argument("--name", required=True, help="what the task is called in the JSON")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--flops", type=float, nargs="*", default=[0.7, 0.5, 0.3, 0.2])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9, help="paired timings")
    asked = parser.parse_args()
    found = resumed(asked)
    dense = merge_(niwaki.load(asked.model))
    tokenizer, train, rows = rows_of(asked, dense)
    tests = Batches(rows, tokenizer, 64)
    found["left_out"] = LEFT_OUT
    found.setdefault("dense", {})[asked.name] = quality(dense, tests, asked.metric)
    budgets = [{"flops": share} for share in asked.flops] + [{"sparsity": share} for share in asked.sparsity]
    for seed, budget, peer in itertools.product(asked.seeds, budgets, asked.peers):
        _, package, kinds = PEERS[peer]
        run: dict[str, Any] = {"task": asked.name, "peer": peer, **budget, "seed": seed, "rows": asked.rows}
        if next(iter(budget)) not in kinds.split() or is_done(found, {**run, "failed": None}):
            continue
        others = [made for made in found.get("runs", []) if not run.items() <= made.items()]
        try:
            run["package"] = package and f"{package} {version(package)}"
        except PackageNotFoundError:
            print(f"{peer}: {package} is not installed here, passed over", flush=True)
            continue
        calibration = list(Batches(sample(train, asked.rows, seed), tokenizer, 32))
        job = Job(peer, budget, seed, asked.model, calibration, tests, asked.metric, asked.rounds)
        found["runs"] = others
        note(found, {**run, **apart(job)}, asked.out)
    write(asked.out, found)


def apart(job: Job) -> dict[str, Any]:
    """`measured` in a process of its own; `failed` says in a line why nothing came of it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return {"failed": None, **pool.submit(measured, job).result()}
        except Exception as error:  # a peer may fail in any way, which is a result
            line = next(iter(str(error).splitlines()), "")
            return {"failed": f"{type(error).__name__}: {line[:160]}"}


def measured(job: Job) -> dict[str, Any]:
    """One row of the table."""
    prune = import_module(PEERS[job.peer][0]).prune
    dense = merge_(niwaki.load(job.model)).eval()
    pruned = copy.deepcopy(dense).requires_grad_(True)  # the merged weights came frozen beside an adapter
    adapted = niwaki.load(job.model).eval()
    started = time.process_time()
    forward_and_backward(adapted, job.calibration)
    one_pass = time.process_time() - started
    del adapted
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the allocator holds the pass's memory, and pruning takes from that
    before = peak_is_now()
    started = time.process_time()
    pruned = prune(pruned, job.calibration, job.budget, job.seed).eval()
    seconds = time.process_time() - started
    peak = resident("VmHWM") - before
    print(f"{job.peer}: {seconds:.1f} s, a pass {one_pass:.1f} s", flush=True)
    latency = model_latency(dense, pruned, 64, (32,), job.rounds)
    return {
        "quality": quality(pruned, job.tests, job.metric),
        "fidelity": fidelity(dense, pruned, job.tests),
        "cost": seconds / one_pass,
        "peak_mib": peak,
        "speedup": latency["batch_32"]["speedup"],
        "reloads": reloads(pruned, without_labels(job.calibration[0])),
        **kept(dense, pruned, job),
    }


def kept(dense: Any, pruned: Any, job: Job) -> dict[str, Any]:
    """What of the budget's kind the pruned model has, counted alike for all, and whether it is what was asked."""
    (kind, asked), length = next(iter(job.budget.items())), mean_length(job.calibration)
    if kind == "sparsity":
        linears = linears_of(pruned)
        zeros, weights = sum(int((weight_of(x.module) == 0).sum()) for x in linears), sum(x.size for x in linears)
        achieved, unit = zeros / weights, len(linears) / weights
    else:
        total = count(dense, length).block_flops
        achieved = count(pruned, length).block_flops / total
        unit = max(unit_flops(site, length) for site in sites_of(dense)) / total
    return {"achieved": achieved, "exact": abs(achieved - asked) <= unit + 1e-9}


def reloads(model: Any, batch: dict[str, torch.Tensor]) -> bool:
    """Whether what `save_pretrained` writes comes back through `from_pretrained` as the same model."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        try:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder).eval()
            return torch.allclose(model(**batch)[0], again(**batch)[0], atol=1e-4)
        except Exception as error:
            print(f"does not reload: {type(error).__name__}: {str(error)[:300]}", flush=True)
            return False


if __name__ == "__main__":
    main()
