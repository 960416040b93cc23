"""The one verb for every way of pruning: `prune_(model, config, data)`; the type of the config says which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from torch import nn

from niwaki.adapters import check_model
from niwaki.anatomy import Site, accepts_of, linears_of, sites_of
from niwaki.config import DynamicSparsityTraining, LayerAdaptive, Structured
from niwaki.data import checked_batches
from niwaki.errors import RequestError
from niwaki.methods.dynamic import prune_dynamically_
from niwaki.methods.layer_adaptive import prune_weights_, score_weights
from niwaki.methods.scores import Scores
from niwaki.methods.structured import prune_units_, score_units_of
from niwaki.numerics.seeds import seeded
from niwaki.observe import Batch
from niwaki.processes import check_enough
from niwaki.results import StageResult
from niwaki.train.data import recovery_data


def prune_(
    model: nn.Module,
    config: Structured | LayerAdaptive | DynamicSparsityTraining,
    data: Iterable[Batch],
    *,
    training_data: Iterable[Batch] | None = None,
    filter: Callable[[Site], bool] | None = None,
    progress: bool = False,
) -> StageResult:
    """Prune `model` in place to the budget of `config` and say what was done.

    `model` is a supported `PreTrainedModel` or a `PeftModel` around one, whose LoRA stays attached; `data` an iterable
    of batches (dicts of tensors with `input_ids`, and `attention_mask` where there is padding). Recovery and dynamic
    sparsity train on `training_data`, on `data` where there are none; a plain model stays one. A training that fails
    or is interrupted leaves the model as it was before that training. Where `filter` says False of a site (see
    `niwaki.anatomy.Site`: its `name`, `kind`, `layer`), nothing of it is cut; the budget is that of all blocks still.
    Where torch.distributed is initialised, every process calls this with the same model and `data`; each works on its
    share of the batches, and all end with the same model.

    Raises:
        RequestError: before any work: the model is not supported, the data are no batches that it takes, the budget is
            below what the minimum widths allow, or what is to be trained cannot be.
        WorkError: a statistic, a loss or a solve is not finite.
    """
    if not isinstance(config, Structured | LayerAdaptive | DynamicSparsityTraining):
        kinds = "Structured, LayerAdaptive or DynamicSparsityTraining"
        raise RequestError(f"config must be {kinds}, got {type(config).__name__}")
    if filter is not None:
        config = _sparing(model, config, filter)
    with seeded(config.seed):  # a loader that shuffles draws from the global state, too
        if isinstance(config, DynamicSparsityTraining):
            return prune_dynamically_(model, config, data, training=training_data, progress=progress)
        check_model(model)
        batches = checked_batches(accepts_of(model), data)
        check_enough(batches)
        recovery = recovery_data(model, config, training_data, batches)
        if isinstance(config, LayerAdaptive):
            return prune_weights_(model, config, batches, recovery, progress=progress)
        return prune_units_(model, config.resolved(), batches, recovery, progress=progress)


def _sparing(
    model: nn.Module, config: Structured | LayerAdaptive | DynamicSparsityTraining, keep: Callable[[Site], bool]
) -> Structured | LayerAdaptive | DynamicSparsityTraining:
    spared = tuple(site.name for site in sites_of(model) if not keep(site))
    return dataclasses.replace(config, spared=(*(config.spared or ()), *spared))


def score(
    model: nn.Module,
    data: Iterable[Batch],
    config: Structured | LayerAdaptive | None = None,
    *,
    filter: Callable[[Site], bool] | None = None,
    progress: bool = False,
) -> Scores:
    """Importance only: higher is more important. Nothing is pruned.

    As `Structured` scores (the default): of heads and neurons, by site. As `LayerAdaptive` does: of linears; give it a
    `layer_score` (and an allocation that looks at it) for an `importance`. Sites of which `filter` says False are left
    out.

    Raises:
        RequestError: the model is not supported, no batches, or none with labels for a score that needs them.
        WorkError: a statistic that is not finite.
    """
    config = config or Structured(flops=1.0)
    with seeded(config.seed):
        check_model(model)
        batches = checked_batches(accepts_of(model), data)
        check_enough(batches)
        if isinstance(config, LayerAdaptive):
            found = score_weights(model, batches, config.resolved(), progress=progress)
            sites = {linear.name: linear.site for linear in linears_of(model)}
        else:
            found = score_units_of(model, batches, config, progress=progress)
            sites = {site.name: site for site in sites_of(model)}
    for name in [name for name in found if filter is not None and not filter(sites[name])]:
        del found[name]
        found.importance.pop(name, None)
    return found
