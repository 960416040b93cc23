"""The one verb for every way of pruning: `prune_(model, config, data)`; the type of the config says which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

from torch import nn

from niwaki.config import DynamicSparsityTraining, LayerAdaptive, Structured
from niwaki.methods.dynamic import prune_dynamically_
from niwaki.methods.layer_adaptive import prune_weights_, score_linears
from niwaki.methods.structured import prune_units_, score_units
from niwaki.numerics.seeds import seeded
from niwaki.observe.units import Batch
from niwaki.results import StageResult


def prune_(
    model: nn.Module,
    config: Structured | LayerAdaptive | DynamicSparsityTraining,
    data: Iterable[Batch],
    *,
    training_data: Iterable[Batch] | None = None,
    progress: bool = False,
) -> StageResult:
    """Prune `model` in place to the budget of `config` and say what was done.

    `model` is a supported `PreTrainedModel` or a `PeftModel` around one, whose LoRA stays attached; `data` an iterable
    of batches (dicts of tensors with `input_ids`, and `attention_mask` where there is padding). Recovery and dynamic
    sparsity train on `training_data`, on `data` where there are none; a plain model stays one. A training that fails
    or is interrupted leaves the model as it was before that training.

    Raises:
        RequestError: before any work: the model is not supported, the data are no batches that it takes, the budget is
            below what the minimum widths allow, or what is to be trained cannot be.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    with seeded(config.seed):
        if isinstance(config, DynamicSparsityTraining):
            return prune_dynamically_(model, config, data, training=training_data, progress=progress)
        if isinstance(config, LayerAdaptive):
            return prune_weights_(model, config, data, training_data=training_data, progress=progress)
        return prune_units_(model, config, data, training_data=training_data, progress=progress)


@overload
def score(
    model: nn.Module, data: Iterable[Batch], config: Structured | None = None, *, progress: bool = False
) -> dict[str, list[float]]: ...
@overload
def score(
    model: nn.Module, data: Iterable[Batch], config: LayerAdaptive, *, progress: bool = False
) -> dict[str, dict[str, float]]: ...
def score(
    model: nn.Module, data: Iterable[Batch], config: Structured | LayerAdaptive | None = None, *, progress: bool = False
) -> Any:
    """Importance only: higher is more important. Nothing is pruned.

    As `Structured` scores: site name -> one score per unit. As `LayerAdaptive` does: see `score_linears`.
    """
    config = config or Structured(flops=1.0)
    with seeded(config.seed):
        if isinstance(config, LayerAdaptive):
            return score_linears(model, data, config, progress=progress)
        return score_units(model, data, config, progress=progress)
