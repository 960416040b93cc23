"""LoRA fine-tuning of a base model: the step before pruning, for those who have no fine-tuned model yet."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForSequenceClassification

from niwaki.anatomy import sites_of
from niwaki.checkpoint import atomic_folder, load_tokenizer
from niwaki.data import Batches, encode, is_regression, label_names, read_table
from niwaki.errors import RequestError
from niwaki.evaluate import quality
from niwaki.repair.distill import add_lora, train_
from niwaki.run import check_out, run_info


def finetune(
    model: str,
    train_data: str,
    eval_data: str,
    out: str,
    lora_rank: int = 16,
    epochs: float = 1.0,
    learning_rate: float = 5e-4,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    metric: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 32,
    max_length: int = 128,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, float]:
    """Train a LoRA on all linears of the blocks, and the task head; save adapter, tokenizer and `result.json`.

    Returns:
        The quality on `eval_data`.
    """
    check_out(out, overwrite)
    if lora_rank < 1 or epochs <= 0 or learning_rate <= 0:
        raise RequestError(
            "lora_rank must be at least 1, epochs and learning_rate above 0, "
            f"got {lora_rank}, {epochs:g} and {learning_rate:g}"
        )
    started, clock = datetime.now(UTC), time.perf_counter()
    train = read_table(train_data, text_columns, label_column)
    held_out = read_table(eval_data, text_columns, label_column, split="validation")
    for table in (train, held_out):
        Console(stderr=True, quiet=quiet).print(f"recognised {table}", markup=False, highlight=False)
        if table.labels is None:
            raise RequestError(f"label_column must be named: none recognised in {table.path!r}")
    regression = is_regression(train)
    names = ["score"] if regression else label_names(train)
    ids = {name: index for index, name in enumerate(names)}
    tokenizer = load_tokenizer(model)
    rows = encode(train, tokenizer, max_length, ids, regression)
    eval_rows = encode(held_out, tokenizer, max_length, ids, regression)
    torch.manual_seed(seed)
    try:
        config = AutoConfig.from_pretrained(model, num_labels=len(names))
        config.id2label, config.label2id = dict(enumerate(names)), ids
        base = AutoModelForSequenceClassification.from_pretrained(model, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise RequestError(f"model must be a Transformers checkpoint that loads, got {model!r}: {line}") from error
    sites_of(base)
    student = add_lora(base.to(device), lora_rank)
    train_(student, Batches(rows, tokenizer, batch_size), epochs, learning_rate, seed=seed, progress=not quiet)
    found = quality(student, Batches(eval_rows, tokenizer, batch_size), metric)
    with atomic_folder(out, overwrite) as folder:
        for adapter in student.peft_config.values():
            here = Path(model)
            adapter.base_model_name_or_path = str(here.absolute()) if here.exists() else model
        student.save_pretrained(str(folder))
        tokenizer.save_pretrained(folder)
        record: dict[str, Any] = {
            "schema": 1,
            "run": run_info(seed, device, started, time.perf_counter() - clock),
            "data": {"train": train.describe(), "eval": held_out.describe()},
            "quality": found,
            "labels": names,
        }
        (folder / "result.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return found
