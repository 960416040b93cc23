"""Accuracy of layer-adaptive pruning, by allocation, weight score, sparsity and seed; writes its JSON after every run.

    python benchmarks/layer_adaptive.py --model ADAPTER --train-data train.tsv --eval-data dev.tsv

`cost` is the seconds of pruning over those of one forward-and-backward pass (weights frozen, as in training LoRA) over
the same calibration rows, timed in the same run. `kl` is the divergence of the dense model from the pruned one on
training rows that no calibration saw: settings are chosen by it, never by the evaluation data. `zeros` counts the
merged weights independently of the result's own record. `peak_mib` is the process's peak so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import time
from pathlib import Path

import torch

import niwaki
from niwaki.anatomy import linears_of, weight_of
from niwaki.checkpoint import load_tokenizer
from niwaki.data import Batches, read_table, sample
from niwaki.evaluate import predictions, quality
from niwaki.lora import merge_, release_
from niwaki.run.inputs import to_rows

HELD_OUT = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "train-data", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--base-model")
    parser.add_argument("--metric")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--allocation", nargs="+", default=[niwaki.LayerAdaptive(sparsity=0.5).allocation])
    parser.add_argument("--weight-score", nargs="+", default=[niwaki.LayerAdaptive(sparsity=0.5).weight_score])
    parser.add_argument("--layer-score", nargs="+", default=[niwaki.LayerAdaptive(sparsity=0.5).layer_score])
    parser.add_argument("--importance-power", type=float, nargs="+", default=[1.0])
    parser.add_argument("--repair", nargs="+", default=["least-squares"])
    parser.add_argument("--recover-epochs", type=int, default=0)
    parser.add_argument("--train-samples", type=int, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layer_adaptive.json")
    asked = parser.parse_args()

    tokenizer = load_tokenizer(asked.model, asked.base_model)
    model = niwaki.load(asked.model, asked.base_model)
    train = to_rows(read_table(asked.train_data), model, tokenizer, 128)
    tests = Batches(to_rows(read_table(asked.eval_data), model, tokenizer, 128), tokenizer, 64)
    held = Batches(sample(train, HELD_OUT, 777), tokenizer, 64)
    wanted = predictions(model, held)[0].log_softmax(-1)
    found = {
        "rows": asked.rows,
        "threads": torch.get_num_threads(),
        "dense": quality(model, tests, asked.metric),
        "runs": [],
    }
    options = itertools.product(
        asked.repair, asked.weight_score, asked.allocation, asked.layer_score, asked.importance_power,
        asked.sparsity, asked.seeds,
    )  # fmt: skip
    for repair, weight_score, allocation, layer_score, power, sparsity, seed in options:
        config = niwaki.LayerAdaptive(
            sparsity=sparsity,
            allocation=allocation,
            weight_score=weight_score,
            layer_score=layer_score,
            importance_power=power,
            repair=repair,
            recover_epochs=asked.recover_epochs,
            seed=seed,
        )
        calibration = list(Batches(sample(train, asked.rows, seed), tokenizer, 32))
        training = Batches(sample(train, asked.train_samples or len(train), seed), tokenizer, 32)
        model = niwaki.load(asked.model, asked.base_model)
        one_pass = _forward_and_backward(model, calibration)
        result = niwaki.prune_(model, config, calibration, training_data=training if asked.recover_epochs else None)
        plain = merge_(model)
        release_(plain)
        q = predictions(plain, held)[0].log_softmax(-1)
        run = {
            "sparsity": sparsity,
            "allocation": allocation,
            "weight_score": weight_score,
            "layer_score": layer_score,
            "importance_power": power,
            "repair": repair,
            "recover_epochs": asked.recover_epochs,
            "seed": seed,
            "achieved": result.achieved,
            "zeros": sum(int((weight_of(linear.module) == 0).sum()) for linear in linears_of(plain)),
            "quality": quality(plain, tests, asked.metric),
            "kl": float((wanted.exp() * (wanted - q)).sum(-1).mean()),
            "cost": result.seconds / one_pass,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "ratios": {layer.name: round(layer.ratio, 4) for layer in result.layers},
        }
        print(json.dumps({k: v for k, v in run.items() if k != "ratios"}), flush=True)
        found["runs"].append(run)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def _forward_and_backward(model: torch.nn.Module, batches: list[dict]) -> float:
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
