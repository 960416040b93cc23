"""What every task keeps of its quality, by budget, beside uniform widths, magnitude and uniform SparseGPT.

    python benchmarks/tasks.py --name wnut17 --model TAGGER --train-data train.conll --eval-data dev.conll

`--model` is what `niwaki finetune` made for the task, or a sentence encoder as it came, which sees sentences alone. The
rows of all tasks go into one JSON; runs that it holds already are not done again. `fidelity` is that of the dense model
on the evaluation data. With `--recover-epochs 1` what is left of `niwaki` at `--recovered` of the FLOPs is trained on
all training rows, or those of `--recovery-data`, by the dense model's word, without labels.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import niwaki
from common import arguments, environment, is_done, write
from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import longest_input
from niwaki.checkpoint import load_tokenizer
from niwaki.data import Batches, read_table, sample
from niwaki.evaluate import fidelity, quality
from niwaki.run.rows import Cut, cut_table

FLOPS: dict[str, dict[str, Any]] = {"niwaki": {}, "uniform widths": {"allocation": "uniform"}}
SPARSITY: dict[str, dict[str, Any]] = {
    "niwaki": {},
    "magnitude": {"allocation": "uniform", "weight_score": "magnitude", "repair": "none"},
    "uniform sparsegpt": {"allocation": "uniform", "weight_score": "sparsegpt", "repair": "none"},
}
SEEDLESS = ("magnitude",)
"""Methods that draw nothing: one seed says all."""


Rows = list[dict[str, Any]]


def cut_of(asked: argparse.Namespace, model: Any) -> Cut:
    """How texts are cut for a model."""
    return Cut(min(asked.max_length, longest_input(model)))


def rows_of(asked: argparse.Namespace, model: Any) -> tuple[Any, Rows, Rows]:
    """The tokenizer of the model that is asked for, and the rows of its training and its evaluation data."""
    tokenizer, how = load_tokenizer(asked.model, of_words=True), cut_of(asked, model)
    train = cut_table(read_table(asked.train_data), model, tokenizer, how, "train").rows
    table = read_table(asked.eval_data, split="validation")
    return tokenizer, train, cut_table(table, model, tokenizer, how, "validation").rows


def main() -> None:
    parser = arguments("tasks")
    parser.add_argument("--name", required=True, help="what the task is called in the JSON")
    parser.add_argument("--flops", type=float, nargs="*", default=[0.7, 0.5, 0.3])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.7, 0.8])
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--recover-epochs", type=int, default=0)
    parser.add_argument("--recovered", type=float, nargs="*", default=[0.5], help="FLOPs at which that is done")
    parser.add_argument("--recover-full", action="store_true", help="all weights left in the blocks, not LoRA")
    parser.add_argument("--recover-learning-rate", type=float, help="its peak; the method's own by default")
    parser.add_argument("--recovery-data", help="what recovery learns from; the training data by default")
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {"tasks": {}}
    task = found["tasks"].setdefault(asked.name, {"runs": []})
    task |= {key: value for key, value in environment(asked).items() if key != "runs"}

    dense = merge_(niwaki.load(asked.model))
    tokenizer, train, rows = rows_of(asked, dense)
    tests = Batches(rows, tokenizer, 64)
    recovery = train
    if asked.recovery_data:
        recovery = cut_table(read_table(asked.recovery_data), dense, tokenizer, cut_of(asked, dense), "train").rows
    task["dense"] = quality(dense, tests)
    print(asked.name, "dense", json.dumps(task["dense"]), flush=True)

    def measured(run: dict[str, Any], config: Any) -> None:
        """One row of the table."""
        if is_done(task, run) or (run["method"] in SEEDLESS and run["seed"]):
            return
        model = niwaki.load(asked.model)
        calibration = list(Batches(sample(train, asked.rows, run["seed"]), tokenizer, 32))
        training = Batches(recovery, tokenizer, 32) if run["recover_epochs"] else None
        result = niwaki.prune_(model, config, calibration, training_data=training)
        plain = merge_(model)
        remove_masks_(plain)
        row = {**run, "achieved": result.achieved, "quality": quality(plain, tests)}
        row["fidelity"] = fidelity(dense, plain, tests)
        task["runs"].append(row)
        print(asked.name, json.dumps(row), flush=True)
        write(asked.out, found)

    for seed, epochs in itertools.product(asked.seeds, dict.fromkeys([0, asked.recover_epochs])):
        for flops, (name, options) in itertools.product(asked.flops, FLOPS.items()):
            if not epochs or (name == "niwaki" and flops in asked.recovered):
                run = {"method": name, "flops": flops, "seed": seed, "rows": asked.rows, "recover_epochs": epochs}
                if epochs:
                    how = {"recover_full": asked.recover_full, "recover_learning_rate": asked.recover_learning_rate}
                    options = {**options, "recover_epochs": epochs, **how}
                    run |= {**how, "recovery_rows": len(recovery)}
                measured(run, niwaki.Structured(flops=flops, seed=seed, **options))
        for sparsity, (name, options) in itertools.product(asked.sparsity if not epochs else [], SPARSITY.items()):
            run = {"method": name, "sparsity": sparsity, "seed": seed, "rows": asked.rows, "recover_epochs": 0}
            measured(run, niwaki.LayerAdaptive(sparsity=sparsity, seed=seed, **options))
    write(asked.out, found)


if __name__ == "__main__":
    main()
