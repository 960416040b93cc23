"""A recipe from request to finished folder: load, stages, measure, save."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from niwaki.adapters import merge_, remove_masks_
from niwaki.anatomy import is_language_model
from niwaki.checkpoint import loads_language_model, weight_files, write_adapter, write_model
from niwaki.checkpoint.folder import atomic_folder
from niwaki.config import (
    DynamicSparsityTraining,
    Finetune,
    Recipe,
    Structured,
    Vocabulary,
    recipe_to_dict,
    write_recipe,
)
from niwaki.data import Batches, Table, label_names, mean_length, predicts_numbers, sample
from niwaki.errors import RequestError
from niwaki.evaluate import check_metric
from niwaki.methods.dynamic import plan_schedule, train_dynamic, write_training
from niwaki.methods.finetune import finetune
from niwaki.methods.prune import prune_
from niwaki.methods.structured import checked_budget
from niwaki.methods.vocabulary import check_trimmable, retokenised, trim_vocabulary_
from niwaki.observe import Batch
from niwaki.report import model_card, page
from niwaki.results import Result, StageResult, write_result
from niwaki.run.inputs import Inputs, check_out, read_data, read_inputs
from niwaki.run.memory import check_memory
from niwaki.run.record import Clock, measure, time_in_turn
from niwaki.run.tasks import check_asked, note_means, read_tasks


def run_recipe(recipe: Recipe, quiet: bool = False) -> Result:
    """Do all that a recipe asks and write its folder; nothing is left there if anything fails.

    Raises:
        RequestError: the request is wrong. WorkError: the work failed.
    """
    clock = Clock()
    torch.manual_seed(recipe.seed)
    check_out(recipe.out, recipe.model, recipe.base_model, recipe.train_data, recipe.eval_data, *recipe.task_files)
    with atomic_folder(recipe.out, recipe.overwrite) as folder:
        train = read_data(recipe, recipe.train_data, "train", quiet)
        evaluation = read_data(recipe, recipe.eval_data, "validation", quiet)
        tasks = read_tasks(recipe, quiet)
        language = loads_language_model(recipe.model, recipe.base_model)
        if language:
            _check_apart(recipe, train, evaluation)
        elif evaluation.labels is None:
            raise RequestError(f"eval_data must have labels, got none in {recipe.eval_data!r}")
        inputs = read_inputs(recipe, None if language else _new_labels(recipe, train), quiet)
        model = inputs.model
        check_metric(model, recipe.metric)
        check_asked(recipe, model)
        trains = isinstance(model, PeftModel) or any(
            isinstance(s, Finetune | DynamicSparsityTraining) for s in recipe.stages
        )
        if recipe.keep_adapter and not trains:
            raise RequestError(f"keep_adapter needs a model with an adapter, got {recipe.model!r}")
        calibration, training = _drawn(recipe, inputs, train)
        tests = inputs.batches(inputs.rows(evaluation, "validation"))
        length = mean_length(calibration)
        for stage in recipe.stages:  # what cannot be met is refused before anything is trained
            if isinstance(stage, Structured) and stage.latency is None:
                checked_budget(model, stage, length)
            if isinstance(stage, DynamicSparsityTraining):
                plan_schedule(stage, stage.epochs * len(training))
            if isinstance(stage, Vocabulary):
                check_trimmable(model, inputs.tokenizer)

        if recipe.memory_limit is not None:
            check_memory(recipe.memory_limit, model, recipe.stages, calibration, copies=1)

        dense = merge_(copy.deepcopy(model))
        remove_masks_(dense)
        asked = tasks.measure(dense, inputs)  # first, as data that the harness lacks end the work here
        stages: list[StageResult] = []
        new = inputs
        for stage in recipe.stages:
            if isinstance(stage, Finetune):
                model, done = finetune(model, stage, training, progress=not quiet)
            elif isinstance(stage, DynamicSparsityTraining):
                model, done, schedule, history = train_dynamic(
                    model, stage, training, calibration=calibration, progress=not quiet
                )
                write_training(schedule, history, folder)
            elif isinstance(stage, Vocabulary):
                new, done = _trim(dataclasses.replace(new, model=model), stage, train, evaluation)
                calibration, training = _drawn(recipe, new, train)
            else:
                done = prune_(model, stage, calibration, training_data=training, progress=not quiet)
            stages.append(done)
        if recipe.keep_adapter and isinstance(model, PeftModel):
            write_adapter(model, folder, Path(recipe.out), new.tokenizer)
        plain = merge_(model)
        if not recipe.keep_adapter:
            write_model(plain, folder, new.tokenizer, recipe.compact)
        remove_masks_(plain)  # masks cost time: what is measured is what others load

        before = measure(dense, tests, length, recipe.metric)
        note_means(before, asked)
        if new.tokenizer is not inputs.tokenizer:
            tests = new.batches(new.rows(evaluation, "validation"))
        after = measure(plain, tests, length, recipe.metric)
        note_means(after, tasks.measure(plain, new))
        latency = time_in_turn(dense, plain, max(1, round(length)), before, after)
        if recipe.compact:
            after["size_bytes"] = sum(path.stat().st_size for path in weight_files(folder))
        result = Result(
            run=clock.environment(recipe),
            recipe=recipe_to_dict(recipe),
            data={
                "train": inputs.described(train, "train"),
                "eval": inputs.described(evaluation, "validation"),
            }
            | tasks.to_dict(),
            stages=[stage.to_dict() for stage in stages],
            dense=before,
            pruned=after,
            latency=latency,
            layers=_layers(stages),
            warnings=[warning for stage in stages for warning in stage.warnings],
        )
        write_recipe(recipe, folder / "recipe.yaml")
        write_result(result, folder / "result.json")
        (folder / "README.md").write_text(model_card(result), encoding="utf-8")
        (folder / "report.html").write_text(page([result]), encoding="utf-8")
    return result


def _drawn(recipe: Recipe, inputs: Inputs, train: Table) -> tuple[list[Batch], Batches]:
    """Batches to calibrate on, and to train on."""
    rows = inputs.rows(train, "train")
    calibration = inputs.batches(sample(rows, recipe.calibration_samples, recipe.seed))
    return list(calibration), inputs.batches(sample(rows, recipe.train_samples or len(rows), recipe.seed))


def _trim(inputs: Inputs, stage: Vocabulary, train: Table, evaluation: Table) -> tuple[Inputs, StageResult]:
    """Trim the model of `inputs` in place; the inputs with its new tokenizer, and what that makes of the evaluation."""
    tokenizer, done = trim_vocabulary_(inputs.model, inputs.tokenizer, inputs.texts(train), stage)
    found = retokenised(inputs.tokenizer, tokenizer, inputs.texts(evaluation))
    warnings = done.warnings
    if found.changed:
        share = f"{found.gone} of the {found.before} tokens of eval_data"
        if is_language_model(inputs.model):
            share += " are gone and cut into others; perplexities per token are not comparable"
        else:
            share += f" are gone and cut into others, in {found.changed} of {found.texts} texts"
        warnings = (*warnings, f"vocabulary: {share}")
    details = {**done.details, "eval": found.to_dict()}
    done = dataclasses.replace(done, warnings=warnings, details=details)
    return dataclasses.replace(inputs, tokenizer=tokenizer, quiet=True, protocols={}), done


def _check_apart(recipe: Recipe, train: Table, evaluation: Table) -> None:
    """Refuse to measure a language model on the text that it was fitted to."""
    same = train.path == evaluation.path if train.sha256 is None else train.sha256 == evaluation.sha256
    if same and not recipe.same_data:
        rule = "eval_data must be another text than train_data (or ask for --same-data)"
        raise RequestError(f"{rule}, got {recipe.eval_data!r}")


def _new_labels(recipe: Recipe, train: Table) -> list[str] | None:
    """Names of the classes for a model that first learns from labels: `[""]` stands for one number to predict."""
    first = next((stage for stage in recipe.stages if not isinstance(stage, Vocabulary)), recipe.stages[0])
    if not (isinstance(first, Finetune) or (isinstance(first, DynamicSparsityTraining) and first.teacher == "none")):
        return None
    if train.labels is None:
        raise RequestError(f"train_data must have labels to fine-tune on, got none in {recipe.train_data!r}")
    if predicts_numbers(train):
        return [""]
    names = label_names(train)
    if len(names) < 2:
        raise RequestError(f"train_data must have at least two classes to fine-tune on, got only {names[0]!r}")
    return names


def _layers(stages: list[StageResult]) -> list[dict[str, Any]]:
    """The sites after the last pruning stage; totals and ratios are those of the model that came in."""
    pruning = [stage for stage in stages if stage.layers]
    if not pruning:
        return []
    first = {site.name: site.total for stage in reversed(pruning) for site in stage.layers}
    last = (dataclasses.replace(site, total=first[site.name]) for site in pruning[-1].layers)
    return [{**dataclasses.asdict(site), "ratio": site.ratio} for site in last]
