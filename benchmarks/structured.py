"""Accuracy of structured pruning without training, by budget and seed; writes benchmarks/results/structured.json.

    python benchmarks/structured.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

`cost` is the seconds of pruning over the seconds of one forward-and-backward pass (weights frozen, as in training LoRA)
over the same calibration rows, timed in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import niwaki
from niwaki.checkpoint import load_tokenizer
from niwaki.data import Batches, read_table, sample
from niwaki.evaluate import quality
from niwaki.lora import merge_
from niwaki.run import to_rows


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "train-data", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "structured.json")
    asked = parser.parse_args()

    tokenizer = load_tokenizer(asked.model)
    model = niwaki.load(asked.model)
    train = to_rows(read_table(asked.train_data), model, tokenizer, 128)
    tests = Batches(to_rows(read_table(asked.eval_data), model, tokenizer, 128), tokenizer, 64)
    found = {"rows": asked.rows, "threads": torch.get_num_threads(), "dense": quality(model, tests), "runs": []}
    for flops in asked.flops:
        for seed in asked.seeds:
            calibration = Batches(sample(train, asked.rows, seed), tokenizer, 32)
            model = niwaki.load(asked.model)
            one_pass = _forward_and_backward(model, calibration)
            result = niwaki.prune_(model, niwaki.Structured(flops=flops, seed=seed), calibration)
            run = {
                "flops": flops,
                "seed": seed,
                "achieved": result.achieved,
                "quality": quality(merge_(model), tests),
                "cost": result.seconds / one_pass,
                "kept": {site.name: site.kept for site in result.layers},
            }
            print(json.dumps(run), flush=True)
            found["runs"].append(run)
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


def _forward_and_backward(model: torch.nn.Module, batches: Batches) -> float:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    started = time.perf_counter()
    for batch in batches:
        model(**batch).loss.backward()
    seconds = time.perf_counter() - started
    for parameter in model.parameters():
        parameter.grad = None
    return seconds


if __name__ == "__main__":
    main()
