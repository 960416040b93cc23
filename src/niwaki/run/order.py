"""What the stages of a recipe leave to those after them: what these cannot do with it is refused before any is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from peft import LoraConfig, PeftModel
from torch import nn

from niwaki.adapters import check_rank, masks_of
from niwaki.anatomy import linears_of
from niwaki.config import DynamicSparsityTraining, Finetune, LayerAdaptive, Stage, Structured
from niwaki.config.patterns import NByM, Pattern, Unstructured
from niwaki.errors import RequestError
from niwaki.numerics.decimals import shown_least


@dataclass(frozen=True)
class _Left:
    """What is known of the model before a stage.

    `ranks` are those of its adapter, None without one. With `masked` it holds masks; their `pattern` and the part of
    all weights that are `zeros` are None where they show only once the stages are done. Zeros are whole weights: their
    part is what was asked to within `slack`.
    """

    slack: float
    ranks: frozenset[int] | None = None
    masked: bool = False
    pattern: Pattern | None = None
    zeros: float | None = 0.0


def check_order(model: nn.Module, stages: Sequence[Stage]) -> None:
    """Refuse stages that could not be done after those before them, `model` being what the first one gets.

    Raises:
        RequestError: a full fine-tuning after an adapter was attached, or another rank than it has; fewer zeros than
            there will be, a pattern that these do not have, a schedule that cannot start from them.
    """
    total = max(1, sum(linear.size for linear in linears_of(model)))
    left = _Left(slack=0.6 / total)
    if isinstance(model, PeftModel):
        ranks = frozenset(cast(LoraConfig, config).r for config in model.peft_config.values())
        left = replace(left, ranks=ranks)
    if masks := masks_of(model):
        zeros = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
        left = replace(left, masked=True, zeros=zeros / total)
    for stage in stages:
        match stage:
            case Finetune():
                left = _tuned(left, stage)
            case Structured():
                left = replace(left, pattern=None, zeros=None) if left.masked else left
            case LayerAdaptive():
                left = _zeroed(left, stage)
            case DynamicSparsityTraining():
                left = _moved(_ranked(left, stage.lora_rank), stage)


def _tuned(left: _Left, stage: Finetune) -> _Left:
    if not stage.full:
        return _ranked(left, stage.lora_rank)
    if left.ranks is not None:
        rule = "full must be asked of a model without an adapter"
        raise RequestError(f"{rule}, got one that has one or that a stage before attaches one to; merge it first")
    return left


def _ranked(left: _Left, rank: int) -> _Left:
    """With an adapter of this rank, where there is none."""
    if left.ranks is None:
        return replace(left, ranks=frozenset([rank]))
    check_rank(rank, left.ranks)
    return left


def _zeroed(left: _Left, stage: LayerAdaptive) -> _Left:
    # What is zero already need not have the pattern.
    pattern = None if left.masked else stage.zero_pattern
    if stage.sparsity is None or isinstance(stage.zero_pattern, NByM):
        return replace(left, masked=True, pattern=pattern, zeros=None)
    _check_enough(left, stage.sparsity)
    return replace(left, masked=True, pattern=pattern, zeros=stage.sparsity)


def _moved(left: _Left, stage: DynamicSparsityTraining) -> _Left:
    pattern = stage.zero_pattern
    if left.pattern is not None and not _fits(left.pattern, pattern):
        raise RequestError(f"pattern must be that of the zeros before it, {left.pattern}, got {pattern}")
    if isinstance(pattern, NByM):
        return replace(left, masked=True, pattern=pattern, zeros=None)
    _check_enough(left, stage.sparsity)
    rises = left.masked and left.zeros is not None and left.zeros < stage.sparsity - left.slack
    if rises and stage.schedule == "constant":
        raise RequestError(f"schedule must rise from the {left.zeros:.4g} of zeros before it, got 'constant'")
    if left.masked and stage.start_sparsity:
        rule = "start_sparsity must be left out after a stage that makes zeros, from which it starts"
        raise RequestError(f"{rule}, got {stage.start_sparsity:g}")
    return replace(left, masked=True, pattern=pattern, zeros=stage.sparsity)


def _fits(made: Pattern, asked: Pattern) -> bool:
    """Whether zeros that were made in one pattern can be of another; of n:m that shows once they are looked at."""
    return made == asked or isinstance(asked, Unstructured) or (isinstance(made, NByM) and isinstance(asked, NByM))


def _check_enough(left: _Left, asked: float) -> None:
    if left.zeros is not None and asked < left.zeros - left.slack:
        least = f"{shown_least(left.zeros):.4g}"
        raise RequestError(f"sparsity must be at least the {least} of zeros before it, got {asked:g}")
