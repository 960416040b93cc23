"""One recipe from start to finish: read, measure, prune, recover, measure, write."""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from torch import nn

from niwaki.anatomy import count, sites_of, unwrap
from niwaki.checkpoint import atomic_folder, load, load_tokenizer, write_adapter, write_model
from niwaki.config import Recipe, Structured, recipe_to_dict, write_recipe
from niwaki.data import Batches, Table, encode, is_regression, read_table, sample
from niwaki.errors import RequestError
from niwaki.evaluate import model_latency, quality, size_bytes
from niwaki.lora import merge_
from niwaki.prune import mean_length, prune_, score
from niwaki.report import model_card, render
from niwaki.results import Result, write_result


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, and a table turned into rows for it."""

    model: nn.Module
    tokenizer: Any

    def rows(self, table: Table, max_length: int) -> list[dict[str, Any]]:
        """Tokenised rows. Raises `RequestError` for labels that the model does not have."""
        config = unwrap(self.model).config
        regression = config.num_labels == 1
        if table.labels is not None and is_regression(table) != regression:
            kind = "numbers" if regression else f"{config.num_labels} classes"
            raise RequestError(f"labels must be the model's {kind}, got those of column {table.label_column!r}")
        return encode(table, self.tokenizer, max_length, dict(config.label2id), regression)


def check_out(out: str | Path, overwrite: bool) -> None:
    """Refuse an existing non-empty folder before any work."""
    path = Path(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not overwrite):
        raise RequestError(f"out must be a new or empty folder (or ask for --overwrite), got {str(out)!r}")


def run_info(seed: int, device: str, started: datetime, seconds: float) -> dict[str, Any]:
    """Where and with what a run was made: the `run` object of `result.json`."""
    versions = {name: version(name) for name in ("niwaki", "torch", "transformers", "peft")}
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device,
        "seed": seed,
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
    }


def measure(model: nn.Module, batches: Batches, length: float, metric: str | None) -> dict[str, Any]:
    """Quality, counts and size of a merged model."""
    counts = count(model, length)
    return {
        "quality": quality(model, batches, metric),
        "params": counts.block_params,
        "flops": counts.block_flops,
        "embedding_params": counts.embedding_params,
        "head_params": counts.head_params,
        "size_bytes": size_bytes(model),
        "zeros": counts.zeros,
    }


def run_recipe(recipe: Recipe, quiet: bool = False) -> Result:
    """Do what `recipe` says and write everything to `recipe.out`, or nothing.

    Raises:
        RequestError: the request is wrong. WorkError: the work failed.
    """
    check_out(recipe.out, recipe.overwrite)
    started, clock = datetime.now(UTC), time.perf_counter()
    console = Console(stderr=True, quiet=quiet)
    train = read_table(recipe.train_data, recipe.text_columns, recipe.label_column)
    held_out = read_table(recipe.eval_data, recipe.text_columns, recipe.label_column, split="validation")
    for table in (train, held_out):
        console.print(f"recognised {table}", markup=False, highlight=False)
    if held_out.labels is None:
        raise RequestError(f"eval_data must have labels, got {recipe.eval_data!r} without a label column")
    if train.labels is None and any(_needs_labels(stage) for stage in recipe.stages):
        raise RequestError(f"train_data must have labels for what was asked, got {recipe.train_data!r} without any")
    model: nn.Module = load(recipe.model, recipe.base_model, recipe.device)
    loaded = Loaded(model, load_tokenizer(recipe.model, recipe.base_model))
    if recipe.keep_adapter and not isinstance(model, PeftModel):
        raise RequestError(f"keep_adapter needs a model with an adapter, got {recipe.model!r}")
    sites_of(model)
    train_rows = loaded.rows(train, recipe.max_length)
    eval_batches = Batches(loaded.rows(held_out, recipe.max_length), loaded.tokenizer, recipe.batch_size)
    if not recipe.keep_adapter:
        model = merge_(model)
    chosen = sample(train_rows, recipe.calibration_samples, recipe.seed)
    calibration = Batches(chosen, loaded.tokenizer, recipe.batch_size)
    length = mean_length(list(calibration))
    dense = merge_(copy.deepcopy(model))

    results = []
    for stage in recipe.stages:
        console.print(f"{stage.budget[0]} to keep: {stage.budget[1]:g}", markup=False)
        results.append(prune_(model, stage, calibration, progress=not quiet))
        if stage.recover_epochs > 0:
            from niwaki.repair.distill import recover_

            everything = Batches(train_rows, loaded.tokenizer, recipe.batch_size)
            model = recover_(model, everything, dense, stage, progress=not quiet)

    pruned = merge_(copy.deepcopy(model))
    before = measure(dense, eval_batches, length, recipe.metric)
    after = measure(pruned, eval_batches, length, recipe.metric)
    latency = model_latency(dense, pruned, max(1, round(length)))
    batch_keys = [key for key in latency if key.startswith("batch_")]
    before["latency"] = {key: latency[key]["dense_ms"] for key in batch_keys}
    after["latency"] = {key: latency[key]["pruned_ms"] for key in batch_keys}
    result = Result(
        run=run_info(recipe.seed, recipe.device, started, time.perf_counter() - clock),
        recipe=recipe_to_dict(recipe),
        data={"train": train.describe(), "eval": held_out.describe()},
        stages=[stage.to_dict() for stage in results],
        dense=before,
        pruned=after,
        latency=latency,
        layers=[dataclasses.asdict(site) for site in results[-1].layers],
        warnings=[text for stage in results for text in stage.warnings],
    )
    with atomic_folder(recipe.out, recipe.overwrite) as folder:
        if recipe.keep_adapter and isinstance(model, PeftModel):
            write_adapter(model, folder, Path(recipe.out).absolute(), loaded.tokenizer)
        else:
            write_model(pruned, folder, loaded.tokenizer)
        write_recipe(recipe, folder / "recipe.yaml")
        write_result(result, folder / "result.json")
        (folder / "README.md").write_text(model_card(result), encoding="utf-8")
        (folder / "report.html").write_text(render([result]), encoding="utf-8")
    return result


def evaluate_model(
    model: str,
    eval_data: str,
    out: str,
    against: str | None = None,
    base_model: str | None = None,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    metric: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 32,
    max_length: int = 128,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure one model, beside a dense one when `against` names it, and write `eval.json`."""
    check_out(out, overwrite)
    started, clock = datetime.now(UTC), time.perf_counter()
    table = read_table(eval_data, text_columns, label_column, split="validation")
    Console(stderr=True, quiet=quiet).print(f"recognised {table}", markup=False, highlight=False)
    found: dict[str, Any] = {"data": {"eval": table.describe()}}
    models: dict[str, nn.Module] = {}
    length = 1.0
    for key, source in (("model", model), ("against", against)):
        if source is None:
            continue
        base = base_model if (Path(source) / "adapter_config.json").is_file() else None
        loaded = Loaded(merge_(load(source, base, device)), load_tokenizer(source, base))
        batches = Batches(loaded.rows(table, max_length), loaded.tokenizer, batch_size)
        if key == "model":
            length = mean_length(list(batches))
        models[key] = loaded.model
        found[key] = {"source": source, **measure(loaded.model, batches, length, metric)}
    found["latency"] = model_latency(models.get("against", models["model"]), models["model"], max(1, round(length)))
    found["run"] = run_info(seed, device, started, time.perf_counter() - clock)
    with atomic_folder(out, overwrite) as folder:
        _write_json(found, folder / "eval.json")
    return found


def score_model(
    model: str,
    train_data: str,
    out: str,
    stage: Structured | None = None,
    base_model: str | None = None,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 32,
    max_length: int = 128,
    calibration_samples: int = 2048,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, list[float]]:
    """Importance of every unit, written to `scores.json`; nothing is pruned."""
    check_out(out, overwrite)
    table = read_table(train_data, text_columns, label_column)
    Console(stderr=True, quiet=quiet).print(f"recognised {table}", markup=False, highlight=False)
    loaded = Loaded(load(model, base_model, device), load_tokenizer(model, base_model))
    rows = sample(loaded.rows(table, max_length), calibration_samples, seed)
    chosen = stage or Structured(flops=1.0, seed=seed)
    scores = score(loaded.model, Batches(rows, loaded.tokenizer, batch_size), chosen)
    names = {"head_score": chosen.head_score, "neuron_score": chosen.neuron_score}
    with atomic_folder(out, overwrite) as folder:
        _write_json({**names, "scores": scores, "data": {"train": table.describe()}}, folder / "scores.json")
    return scores


def _needs_labels(stage: Structured) -> bool:
    return stage.recover_epochs > 0 or bool({stage.head_score, stage.neuron_score} & {"fisher", "taylor"})


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
