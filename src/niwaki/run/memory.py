"""How much memory a stage will take, estimated before any work: what `--max-memory` is held against.

Counted, above what the process holds with model and data loaded: whole copies of the model, masks and scores, the sums
of the widest block with the work space of its solves, those that structured pruning makes of gradients of all blocks,
optimizer states, and what one batch takes: of those that are looked at, trained on and measured each the largest, and
of those that are timed. What a batch leaves is seen on one row of it, with what trains in training mode. What is not
there at the same time is not added up: a pass backward is over before anything is solved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
from torch import nn

from niwaki.anatomy import (
    BlockLinear,
    layers_of,
    linears_of,
    sites_of,
    weight_of,
)
from niwaki.config import STAGES, DynamicSparsityTraining, Finetune, LayerAdaptive, Stage, Structured
from niwaki.config.layer_adaptive import SOLVED
from niwaki.config.planned import Planned
from niwaki.errors import RequestError
from niwaki.methods.weight_profiles import looks_at_data, weight_need
from niwaki.numerics.decimals import shown_least, shown_most
from niwaki.observe import Batch
from niwaki.repair.block_reconstruction import learns
from niwaki.run.pass_memory import beside_bytes, forward_bytes, observing_bytes, timing_bytes, training_bytes

_SOLVES, _MASKED_SOLVES = (3, 5), (4, 7)
"""Matrices in float64 of a linear's inputs, and of its weights, that a solve holds at once; where it chooses a mask."""

_SEARCHED = 32
"""Bytes a weight of what a search for the best mask of one linear holds beside that."""

_LEARNED = 36
"""Bytes a weight of a layer that learns: values and two moments in float32, gradients in double precision, too, and
what masks make of them."""

_FACTOR = 20
"""Bytes a parameter of LoRA: its value, gradient and two moments, and the best value where one is kept."""

_RECOVERED = 24
"""Bytes a weight of blocks that recover: gradient, two moments, the value to go back to, the best, the masked one."""

_NARROW = 24
"""Copies of what is no block of a model, in PyTorch and in an engine, with its layers at all widths timed there."""

LIBRARIES = 2**27
"""Bytes of what is loaded on the way, and of what libraries keep for their products and in pieces of their own."""

_RANKED = 64
"""Bytes a weight of scores in float64 and their order, over all weights where one threshold is found for them."""


def check_memory(
    limit: int,
    model: nn.Module,
    stages: Sequence[Stage],
    data: Sequence[Batch],
    copies: int,
    training: Sequence[Batch] | None = None,
    tests: Sequence[Batch] | None = None,
) -> None:
    """Refuse stages that will take more than `limit` bytes of memory, this process and all it holds included.

    `copies` of the model are held by the caller beside what a stage holds. Stages look at `data`, and train on batches
    none of which is larger than those of `training`; the model is measured on those of `tests`. Both are `data` where
    they are not given.

    Raises:
        RequestError: saying what is needed, and by which stage.
    """
    held = psutil.Process().memory_info().rss + copies * weight_bytes(model) + LIBRARIES
    for stage in stages:
        total = held + stage_bytes(model, stage, data, training, tests)
        if total > limit:
            rows = max(len(batch["input_ids"]) for batch in (*data, *(training or ()), *(tests or ())))
            name = next(name for name, kind in STAGES.items() if isinstance(stage, kind))
            rule = f"max_memory must be at least {shown(total, enough=True)} for {name} with batches of {rows} rows"
            raise RequestError(f"{rule} (a smaller batch_size needs less), got {shown(limit)}")


def check_processes(limit: int, model: nn.Module, jobs: int, taken: int) -> None:
    """Refuse `jobs` processes that read what this one holds, and take so many bytes each, with this one beside them.

    One job is done in this process itself. Each works on a copy of the model, and holds a dense one beside that. What
    this process shares with others, the code of libraries for the most part, is there once for all of them.

    Raises:
        RequestError: saying what is needed.
    """
    here = psutil.Process().memory_info()
    own = here.rss - getattr(here, "shared", 0) if jobs > 1 else 0
    total = here.rss + jobs * (own + 2 * weight_bytes(model) + LIBRARIES + taken)
    if total > limit:
        what, less = (
            ("a sweep", "a smaller batch_size needs less") if jobs == 1 else (f"{jobs} jobs", "fewer need less")
        )
        raise RequestError(
            f"max_memory must be at least {shown(total, enough=True)} for {what} ({less}), got {shown(limit)}"
        )


def stage_bytes(
    model: nn.Module,
    stage: Stage,
    data: Sequence[Batch],
    training: Sequence[Batch] | None = None,
    tests: Sequence[Batch] | None = None,
) -> int:
    """Bytes that `stage` takes above the model and the data, and what is done before and after it, at their most."""
    tried = weight_bytes(model) if isinstance(stage, Planned) and stage.keep_quality is not None else 0
    # Before and after it the model is measured and timed, in a copy where it has adapters or masks.
    measured = weight_bytes(model) + max(forward_bytes(model, tests or data), timing_bytes(model, data))
    return tried + max(measured, needed(model, stage, data, training))


def needed(model: nn.Module, stage: Stage, data: Sequence[Batch], training: Sequence[Batch] | None = None) -> int:
    """Bytes that `stage` takes above the model and the data, at its most; meant to be too many rather than too few."""
    training = data if training is None else training
    weights, linears = weight_bytes(model), linears_of(model)
    single = sum(linear.size for linear in linears)
    factors = _FACTOR * getattr(stage, "lora_rank", 16) * sum(sum(linear.shape) for linear in linears)
    match stage:
        case Structured():
            gradients = sum(4 * weight_of(site.output).shape[0] ** 2 for site in sites_of(model))
            observed = gradients + max(observing_bytes(model, data), _block_bytes(linears, _SOLVES))
            refitted = (
                weights + _block_bytes(linears, _SOLVES) + forward_bytes(model, data) + _learning(stage, linears, data)
            )
            found = max(observed, refitted)
            if stage.recover_epochs:
                found = max(found, weights + _recovering(stage, model, training, factors))
            if stage.latency is not None:
                elsewhere = stage.latency_engine != "pytorch"
                found += 4 * weights + _NARROW * (weights - 4 * single) if elsewhere else weights
            return found + _token_bytes(linears, data)
        case LayerAdaptive():
            return single // 8 + _zeroing(model, stage.resolved(), linears, data, training, factors)
        case DynamicSparsityTraining():
            # Masked weights, gradients, saliency and its uncertainty in float32; four masks.
            passing = training_bytes(model, training, stage, dropout=stage.teacher == "none")
            passing += beside_bytes(model, training) if stage.teacher == "dense" else 0
            return weights + (4 * 4 + 4) * single + factors + passing
        case Finetune():
            # Of all weights: gradients, two moments, the values to go back to, and the best.
            copies = 4 + (stage.early_stopping > 0)
            trained = copies * weights if stage.full else factors
            return trained + training_bytes(model, training, stage, dropout=True)
        case _:
            return weights


def _zeroing(
    model: nn.Module,
    stage: LayerAdaptive,
    linears: Sequence[BlockLinear],
    data: Sequence[Batch],
    training: Sequence[Batch],
    factors: int,
) -> int:
    """Bytes that a resolved layer-adaptive stage takes beside its masks."""
    need, weights, single = weight_need(stage), weight_bytes(model), sum(linear.size for linear in linears)
    repairs = stage.repair == "least-squares"
    observed = 0
    if need.task or need.contrast or stage.compares_rows or repairs:
        observed = observing_bytes(model, data)
    elif looks_at_data(stage):
        observed = forward_bytes(model, data)
    largest = max(linear.size for linear in linears)
    chosen = _RANKED * largest
    if stage.weight_score in SOLVED or stage.allocation == "search" or stage.repair != "none":
        chosen = _block_bytes(linears, _MASKED_SOLVES, at_once=stage.fast) + forward_bytes(model, data)
        chosen += _SEARCHED * largest * (stage.weight_score == "alps") + _learning(stage, linears, data)
        chosen += weights // len(layers_of(model))  # a layer as it was
    found = max(observed, chosen)
    if stage.recover_epochs:
        found = max(found, _recovering(stage, model, training, factors))
    found += weights * (stage.steps > 1 or stage.recover_epochs > 0)
    found += _RANKED * single * (stage.allocation in ("global", "lamp"))
    found += 4 * single * (stage.weight_score == "gradient")
    return found + _token_bytes(linears, data) * repairs


def _block_bytes(linears: Sequence[BlockLinear], solves: tuple[int, int], at_once: bool = False) -> int:
    """Bytes of sums and solves of those linears that are looked at in one pass, where they are most."""
    together: dict[Any, list[BlockLinear]] = {}
    for linear in linears:
        together.setdefault(linear.layer if at_once else (linear.site.name, linear.writes), []).append(linear)
    most = 0
    for group in together.values():
        sums = sum(8 * (columns + 1) * (columns + 1 + rows) for rows, columns in (linear.shape for linear in group))
        square, whole = solves
        solved = max(8 * (square * linear.shape[1] ** 2 + whole * linear.size) for linear in group)
        most = max(most, sums + solved)
    return most


def _token_bytes(linears: Sequence[BlockLinear], data: Sequence[Batch]) -> int:
    """Bytes of what each token matters to each linear: a size, and a weight."""
    return 8 * len(linears) * sum(batch["input_ids"].numel() for batch in data)


def _learning(stage: Structured | LayerAdaptive, linears: Sequence[BlockLinear], data: Sequence[Batch]) -> int:
    """Bytes of a layer that learns."""
    sizes = Counter[int]()
    for linear in linears:
        sizes[linear.layer] += linear.size
    return 0 if learns(stage, data) == "none" else _LEARNED * max(sizes.values())


def _recovering(stage: Structured | LayerAdaptive, model: nn.Module, data: Sequence[Batch], factors: int) -> int:
    """Bytes of what is trained in a recovery, and of its passes, those of the model that it learns from too."""
    passing = training_bytes(model, data, stage, dropout=False) + beside_bytes(model, data)
    return passing + (_RECOVERED * sum(linear.size for linear in linears_of(model)) if stage.recover_full else factors)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def shown(amount: int, enough: bool = False) -> str:
    """An amount as an error says it, rounded down; with `enough` rounded up, so that it can be given as it stands."""
    bound = shown_least if enough else shown_most
    return f"{bound(amount / 2**30, 2):.2f}GiB"
