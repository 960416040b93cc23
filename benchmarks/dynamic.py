"""Accuracy of LoRA trained under a static or a moving mask, by method, sparsity and seed, and the cost of a step.

    python benchmarks/dynamic.py --model BASE --train-data train.tsv --eval-data dev.tsv
    python benchmarks/dynamic.py --model BASE --train-data train.tsv --eval-data dev.tsv --timing

Every row trains alike: LoRA of rank 16 on all linears, the task head, the same fixed rows, epochs and learning rate; a
seed draws the head, the factors, the order and the dropout. Its JSON is written after every run, and a run that is in
it already is not made again. `held` is measured on training rows that no run trained on: settings are chosen by it,
never by the evaluation data. RigL is as published: what returns starts from zero. `--timing` trains a static and a
moving mask in turn, step by step on the same batches: the ratio of their seconds over whole update intervals.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from typing import Any

import torch

import niwaki
from common import Bench, arguments, is_done, note, resumed, write
from niwaki.adapters import merge_, remove_masks_, to_train_
from niwaki.anatomy import linears_of, weight_of
from niwaki.data import Batches, sample
from niwaki.evaluate import predictions
from niwaki.methods.dynamic import Controller
from niwaki.methods.dynamic.stage import MovingMasks
from niwaki.train.loop import task_loss, train_

RANK, HELD_OUT, STATIC_ROWS = 16, 2000, 1024
STATIC = {
    "static magnitude": {"weight_score": "magnitude", "allocation": "uniform", "repair": "none"},
    "static sparsegpt": {"weight_score": "sparsegpt", "allocation": "uniform", "repair": "none"},
    "static search": {},
}
PUBLISHED = {"schedule": "constant", "allocation": "erk", "reallocation": "within", "interval": 100}
MOVING: dict[str, dict[str, Any]] = {
    "gradual magnitude": {"drop": "magnitude", "grow": "none", "reallocation": "within"},
    "rigl": {**PUBLISHED, "drop": "magnitude", "grow": "gradient", "window": 1},
    "set": {**PUBLISHED, "drop": "magnitude", "grow": "random"},
    "default": {},
    "shuffled": {"grow": "shuffled"},
    "without reallocation": {"grow": "none"},
    "within linears only": {"reallocation": "within"},
    "without gradients": {"drop": "magnitude", "grow": "random"},
    "layer-adaptive first": {},
}
BEFORE = {"layer-adaptive first": 0.6}
"""Sparsity that layer-adaptive pruning (its defaults, as in `static search`) has made before the mask moves."""
FROM_ZERO = ("rigl",)


def main() -> None:
    parser = arguments("dynamic", seeds=[0])
    parser.add_argument("--methods", nargs="+", default=[*STATIC, *MOVING], choices=[*STATIC, *MOVING])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--training-rows", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--interval", type=int, default=niwaki.DynamicSparsityConfig(sparsity=0.5).interval)
    parser.add_argument("--timing", action="store_true", help="measure the cost of a step instead")
    parser.add_argument("--intervals", type=int, nargs="+", default=[100], help="intervals at which it is measured")
    asked = parser.parse_args()
    bench = Bench.of(asked, new_head=True)
    rows = sample(bench.train, asked.training_rows + HELD_OUT, 0)
    training = Batches(rows[: asked.training_rows], bench.tokenizer, 32)
    held = Batches(rows[asked.training_rows :], bench.tokenizer, 64)
    found = resumed(asked)
    if asked.timing:
        for interval in asked.intervals:
            found.setdefault("timing", []).append(cost_of_a_step(bench, training, asked, interval))
            print(json.dumps(found["timing"][-1]), flush=True)
            write(asked.out, found)
        return
    for sparsity, method, seed in itertools.product(asked.sparsity, asked.methods, asked.seeds):
        run = {"method": method, "sparsity": sparsity, "seed": seed, "epochs": asked.epochs, "rows": len(training.rows)}
        if method in MOVING:
            run["interval"] = MOVING[method].get("interval", asked.interval)
        if not is_done(found, run):
            note(found, {**run, **trained(bench, training, held, run, asked)}, asked.out)


def trained(
    bench: Bench, training: Batches, held: Batches, run: dict[str, Any], asked: argparse.Namespace
) -> dict[str, Any]:
    """One row of the table."""
    method, sparsity, seed = run["method"], run["sparsity"], run["seed"]
    model = bench.model(seed)
    started = time.perf_counter()
    if method in STATIC or method in BEFORE:
        calibration = Batches(sample(training.rows, STATIC_ROWS, seed), bench.tokenizer, 32)
        first = BEFORE.get(method, sparsity)
        niwaki.prune_(model, niwaki.LayerAdaptive(sparsity=first, seed=seed, **STATIC.get(method, {})), calibration)
    torch.manual_seed(seed)
    model = to_train_(model, RANK, seed=seed)
    model.train()
    controllers: list[Controller] = []

    def attach(optimizer: torch.optim.Optimizer, steps: int, scaler: torch.amp.GradScaler | None) -> MovingMasks:
        options = {**MOVING[method], "interval": run["interval"], "seed": seed}
        config = niwaki.DynamicSparsityConfig(sparsity=sparsity, **options)
        controllers.append(Controller(model, optimizer, config, steps, scaler=scaler))
        return (FromZero if method in FROM_ZERO else MovingMasks)(controllers[0])

    done = train_(
        model,
        training,
        task_loss,
        epochs=asked.epochs,
        learning_rate=asked.learning_rate,
        seed=seed,
        attach=attach if method in MOVING else None,
    )
    moved = {}
    if controllers:
        controllers[0].finish()
        grown = sum(row.grown for row in controllers[0].history)
        moved = {"updates": len(controllers[0].schedule.updates), "grown": grown}
    seconds = time.perf_counter() - started
    plain = merge_(model.eval())
    remove_masks_(plain)
    linears = linears_of(plain)
    zeros = {linear.name: int((weight_of(linear.module) == 0).sum()) for linear in linears}
    logits, labels = predictions(plain, held)
    return {
        "quality": bench.quality(plain),
        "held": {
            "accuracy": float((logits.argmax(-1) == labels).float().mean()),
            "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        },
        "train_loss": done.loss,
        "achieved": sum(zeros.values()) / sum(linear.size for linear in linears),
        **moved,
        "seconds": round(seconds),
        "ratios": {linear.name: round(zeros[linear.name] / linear.size, 4) for linear in linears},
    }


class FromZero(MovingMasks):
    """What has just grown is zero after a step: the stored weight takes up what the adapter adds there."""

    def step(self) -> None:
        controller = self.controller
        if controller.step():
            for name, grown in controller.newest.items():
                weight_of(controller.linears[name].module).data[grown] -= controller.dense(name)[grown]


def cost_of_a_step(bench: Bench, training: Batches, asked: argparse.Namespace, interval: int) -> dict[str, Any]:
    """Seconds of a step with a moving mask over those with a static one, in turn, the mean over whole intervals."""
    sparsity = asked.sparsity[-1]
    batches = list(training)
    config = niwaki.DynamicSparsityConfig(sparsity=sparsity, interval=interval, schedule="constant")
    sides = []
    for moving in (False, True):
        torch.manual_seed(0)
        model = to_train_(bench.model(), RANK)
        optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], 1e-4)
        controller = Controller(model, optimizer, config, 100 * max(interval, 100))
        if not moving:
            controller.finish()
        sides.append((model, optimizer, controller if moving else None))

    def step(side: tuple[Any, torch.optim.Optimizer, Controller | None], batch: dict[str, Any]) -> float:
        model, optimizer, controller = side
        started = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        if controller:
            controller.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    draw = itertools.cycle(batches[i] for i in torch.randperm(len(batches)).tolist())
    for _ in range(3):
        batch = next(draw)
        for side in sides:
            step(side, batch)
    for _ in range(interval - 3):  # whole intervals from here on
        step(sides[1], next(draw))
    ratios = []
    for _ in range(max(1, 300 // interval)):
        seconds = [0.0, 0.0]
        for number in range(interval):
            batch = next(draw)
            for index in (0, 1) if number % 2 else (1, 0):
                seconds[index] += step(sides[index], batch)
        ratios.append(seconds[1] / seconds[0])
    return {"interval": interval, "sparsity": sparsity, "ratio": statistics.median(ratios), "ratios": ratios}


if __name__ == "__main__":
    main()
