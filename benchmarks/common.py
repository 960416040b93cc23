"""What the benchmarks share: their arguments, the model with its data, one pass as the unit of cost, the JSON."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import niwaki
from niwaki.adapters import merge_
from niwaki.checkpoint import load_tokenizer
from niwaki.data import Batches, label_names, read_table, sample
from niwaki.evaluate import model_latency, predictions, quality
from niwaki.run import to_rows

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 512
"""Training rows that measure divergence; none of them is among the calibration rows of any seed that is asked."""


def arguments(script: str, seeds: list[int] | None = None) -> argparse.ArgumentParser:
    """The flags of every benchmark; results go to benchmarks/results/SCRIPT.json."""
    parser = argparse.ArgumentParser()
    for name in ("model", "train-data", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds or [0, 1, 2])
    parser.add_argument("--rows", type=int, default=2048, help="calibration rows")
    parser.add_argument("--metric", help="of the evaluation; the task's usual one by default")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{script}.json")
    return parser


@dataclass
class Bench:
    """A model by name, its tokenised training rows, and its evaluation batches."""

    name: str
    tokenizer: Any
    train: list[dict[str, Any]]
    tests: Batches
    metric: str | None
    labels: list[str] | None

    @classmethod
    def of(cls, asked: argparse.Namespace, *, new_head: bool = False) -> Bench:
        """Read what the flags name; with `new_head` the model gets one for the labels of the training data."""
        table, tokenizer = read_table(asked.train_data), load_tokenizer(asked.model, of_words=True)
        labels = label_names(table) if new_head else None
        model = niwaki.load(asked.model, labels=labels)
        train = to_rows(table, model, tokenizer, 128)
        tests = Batches(to_rows(read_table(asked.eval_data), model, tokenizer, 128), tokenizer, 64)
        return cls(asked.model, tokenizer, train, tests, asked.metric, labels)

    def model(self, seed: int = 0) -> Any:
        """A fresh copy of the model as it came; a new head is drawn by `seed`."""
        return niwaki.load(self.name, labels=self.labels, seed=seed)

    def batches(self, rows: int, seed: int) -> Batches:
        """Batches of 32 over `rows` rows of the training data, drawn by `seed`."""
        return Batches(sample(self.train, rows, seed), self.tokenizer, 32)

    def quality(self, model: torch.nn.Module) -> dict[str, float]:
        """The task's metric on the evaluation data; `model` is merged in place."""
        return quality(merge_(model), self.tests, self.metric)


def held_out_rows(bench: Bench, asked: argparse.Namespace, count: int = HELD_OUT) -> list[dict[str, Any]]:
    """Training rows that no calibration of the seeds that are asked sees."""
    seen = {id(row) for seed in asked.seeds for row in sample(bench.train, asked.rows, seed)}
    return sample([row for row in bench.train if id(row) not in seen], count, 777)


Divergence = Callable[[torch.nn.Module], float]
"""Pruned model -> KL of the dense model from it, in nats a row."""


def held_out(bench: Bench, asked: argparse.Namespace) -> Divergence:
    """The divergence on training rows that no calibration saw."""
    return divergence_on(bench, held_out_rows(bench, asked))


def divergence_on(bench: Bench, rows: list[dict[str, Any]]) -> Divergence:
    """The divergence on these rows."""
    batches = Batches(rows, bench.tokenizer, 64)
    wanted = predictions(bench.model(), batches)[0].log_softmax(-1)

    def divergence(model: torch.nn.Module) -> float:
        found = predictions(model, batches)[0].log_softmax(-1)
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    return divergence


def environment(asked: argparse.Namespace) -> dict[str, Any]:
    """Versions, machine and flags: the head of every result."""
    return {
        "versions": {name: version(name) for name in ("niwaki", "torch", "transformers", "peft")},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "asked": {name: _named(value) for name, value in vars(asked).items()},
    }


def _named(value: Any) -> Any:
    """What was asked, paths as their last names: those of `NAME=PATH` and in lists, too."""
    if isinstance(value, list | tuple):
        return [_named(each) for each in value]
    name, equals, path = str(value).rpartition("=")
    return name + equals + Path(path).name if isinstance(value, str | Path) else value


def resumed(asked: argparse.Namespace) -> dict[str, Any]:
    """`environment`, with what the JSON of an earlier call holds already: an interruption costs one run."""
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {}
    return before | environment(asked)


def is_done(found: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether a result holds a run of just these settings."""
    return any(run.items() <= made.items() for made in found.get("runs", []))


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a result, also after each run, so that an interruption costs one run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def note(found: dict[str, Any], run: dict[str, Any], path: Path) -> None:
    """Add a run to a result, print it and write the file."""
    print(json.dumps(run), flush=True)
    found.setdefault("runs", []).append(run)
    write(path, found)


SHAPES = ((32, 64), (1, 16))
"""Batch, length: where models are timed."""


def speedups(slower: torch.nn.Module, faster: torch.nn.Module) -> dict[str, float]:
    """How many times as fast as the first the second is at each of `SHAPES`, the median of pairs timed in turn."""
    found = {}
    for rows, length in SHAPES:
        timed = model_latency(slower, faster, length, (rows,), 25 if rows > 1 else 300)
        found[f"{rows}x{length}"] = timed[f"batch_{rows}"]["speedup"]
    return found


def forward_and_backward(model: torch.nn.Module, batches: Iterable[dict[str, Any]]) -> float:
    """Seconds of one pass over the batches as in training LoRA: other weights frozen, but embeddings without adapters.

    A model without a loss is derived by its output.
    """
    adapted = any("lora_" in name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(("lora_" if adapted else "embeddings") in name)
    started = time.perf_counter()
    for batch in batches:
        output = model(**batch)
        (output.loss if "loss" in output else output[0].sum()).backward()
    seconds = time.perf_counter() - started
    for parameter in model.parameters():
        parameter.grad = None
    return seconds
