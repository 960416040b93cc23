"""A recipe from request to finished folder: load, stages, measure, save."""

from __future__ import annotations

import copy
import datetime
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from rich.console import Console

from niwaki.anatomy import count, sites_of, unwrap
from niwaki.checkpoint import atomic_folder, load, load_tokenizer, write_adapter, write_model
from niwaki.config import Recipe, recipe_to_dict, write_recipe
from niwaki.data import Batches, Table, encode, is_regression, mean_length, read_table, sample
from niwaki.errors import RequestError
from niwaki.evaluate import model_latency, quality, size_bytes
from niwaki.lora import check_adapters, merge_
from niwaki.prune import prune_
from niwaki.report import model_card, page
from niwaki.results import Result, StageResult, write_result


def run_recipe(recipe: Recipe, quiet: bool = False) -> Result:
    """Do all that a recipe asks and write its folder; nothing is left there if anything fails.

    Raises:
        RequestError: the request is wrong. WorkError: the work failed.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    torch.manual_seed(recipe.seed)
    with atomic_folder(recipe.out, recipe.overwrite) as folder:
        train = read_table(recipe.train_data, recipe.text_columns, recipe.label_column, "train")
        evaluation = read_table(recipe.eval_data, recipe.text_columns, recipe.label_column, "validation")
        model = load(recipe.model, recipe.base_model, recipe.device)
        sites_of(model)
        check_adapters(model)
        if recipe.keep_adapter and not isinstance(model, PeftModel):
            raise RequestError(f"keep_adapter needs a model with an adapter, got {recipe.model!r}")
        tokenizer = load_tokenizer(recipe.model, recipe.base_model)
        if not quiet:
            Console(stderr=True).print(f"train  {train}\neval   {evaluation}", markup=False)
        rows = sample(to_rows(train, model, tokenizer, recipe.max_length), recipe.calibration_samples, recipe.seed)
        calibration = list(Batches(rows, tokenizer, recipe.batch_size))
        tests = Batches(to_rows(evaluation, model, tokenizer, recipe.max_length), tokenizer, recipe.batch_size)
        length = mean_length(calibration)

        dense = merge_(copy.deepcopy(model))
        stages = [prune_(model, stage, calibration, progress=not quiet) for stage in recipe.stages]
        plain = merge_(copy.deepcopy(model))

        result = Result(
            run={**environment(recipe), "started": started.isoformat(), "seconds": time.perf_counter() - clock},
            recipe=recipe_to_dict(recipe),
            data={"train": train.describe(), "eval": evaluation.describe()},
            stages=[stage.to_dict() for stage in stages],
            dense=measure(dense, tests, length, recipe.metric),
            pruned=measure(plain, tests, length, recipe.metric),
            latency=model_latency(dense, plain, max(1, round(length))),
            layers=_layers(stages),
            warnings=[warning for stage in stages for warning in stage.warnings],
        )
        for side, name in ((result.dense, "dense_ms"), (result.pruned, "pruned_ms")):
            side["latency"] = {k: v[name] for k, v in result.latency.items() if k.startswith("batch_")}
        if recipe.keep_adapter and isinstance(model, PeftModel):
            write_adapter(model, folder, Path(recipe.out), tokenizer)
        else:
            write_model(plain, folder, tokenizer)
        write_recipe(recipe, folder / "recipe.yaml")
        write_result(result, folder / "result.json")
        (folder / "README.md").write_text(model_card(result), encoding="utf-8")
        (folder / "report.html").write_text(page([result]), encoding="utf-8")
    return result


def to_rows(table: Table, model: Any, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenised rows of a table, with the labels as the model numbers them."""
    config = unwrap(model).config
    regression = config.num_labels == 1
    if is_regression(table) and not regression:
        raise RequestError(f"labels must be classes for a model with {config.num_labels} labels, got numbers")
    return encode(table, tokenizer, max_length, dict(cast(Any, config.label2id)), regression)


def measure(model: Any, batches: Batches, length: float, metric: str | None) -> dict[str, Any]:
    """Quality, exact counts and size of a plain model; `length` is the mean number of real tokens."""
    counts = count(model, length)
    return {
        "quality": quality(model, batches, metric),
        "params": counts.block_params,
        "embedding_params": counts.embedding_params,
        "head_params": counts.head_params,
        "flops": counts.block_flops,
        "size_bytes": size_bytes(model),
        "zeros": counts.zeros,
    }


def environment(recipe: Recipe) -> dict[str, Any]:
    """Versions and machine: a result without them is no result."""
    return {
        **{name: version(name) for name in ("niwaki", "torch", "transformers", "peft")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": recipe.device,
        "seed": recipe.seed,
    }


def _layers(stages: list[StageResult]) -> list[dict[str, Any]]:
    """The sites after the last stage; totals and ratios are those of the model that came in."""
    first = {site.name: site.total for site in stages[0].layers}
    return [
        {
            "name": site.name,
            "kind": site.kind,
            "importance": site.importance,
            "ratio": 1 - site.kept / first[site.name],
            "kept": site.kept,
            "total": first[site.name],
        }
        for site in stages[-1].layers
    ]
