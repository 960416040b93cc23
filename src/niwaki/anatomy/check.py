"""Which models the work can be done on: their task, what they put out, and that something is left to prune."""

from __future__ import annotations

from torch import nn

from niwaki.anatomy.families import family_of
from niwaki.anatomy.linears import linears_of
from niwaki.anatomy.sites import sites_of, unwrap
from niwaki.anatomy.task import CLASSIFIER, supported_task
from niwaki.config.filter import Filter
from niwaki.errors import RequestError


def check_task(model: nn.Module) -> None:
    """Refuse a model whose outputs, or whose passes, are not those that everything here is made for.

    Raises:
        RequestError: no family row, no task that Niwaki takes, a problem type that does not fit the number of labels,
            tuples put out, FFNs run in chunks; layers that share weights with others.
    """
    sites_of(model)
    _check_own_weights(model)
    inner = unwrap(model)
    config = inner.config
    if supported_task(model) is CLASSIFIER:
        if family_of(inner).causal and config.pad_token_id is None:
            raise RequestError("pad_token_id of a decoder's config must be given where it classifies, got None")
        one = "regression" if config.num_labels == 1 else "single_label_classification"
        if config.problem_type not in (None, one, "multi_label_classification"):
            rule = f"problem_type must be {one} or multi_label_classification for num_labels {config.num_labels}"
            raise RequestError(f"{rule}, got {config.problem_type!r}")
    if not config.return_dict:
        raise RequestError(f"return_dict of the model's config must be True, got {config.return_dict!r}")
    if getattr(config, "chunk_size_feed_forward", 0) > 0:
        rule = "chunk_size_feed_forward of the model's config must be 0 (the outputs are the same)"
        raise RequestError(f"{rule}, got {config.chunk_size_feed_forward}")


def _check_own_weights(model: nn.Module) -> None:
    """Refuse layers that are the same, or hold the same weights: what is done to one would be done to the other.

    Raises:
        RequestError: naming two linears of one weight.
    """
    holders: dict[int, str] = {}
    for linear in linears_of(model):
        plain = getattr(linear.module, "base_layer", linear.module)
        holder = holders.setdefault(id(plain.weight), linear.name)
        if holder != linear.name:
            raise RequestError(f"layers must have weights of their own, got {linear.name} with that of {holder}")


def check_filter(model: nn.Module, config: Filter) -> None:
    """Refuse to spare what a model does not have.

    Raises:
        RequestError: naming the layers or sites that there are.
    """
    sites = sites_of(model)
    layers = max(site.layer for site in sites)
    for layer in config.keep_layers or ():
        if layer > layers:
            raise RequestError(f"keep_layers must be 0 to {layers}, the model's layers, got {layer}")
    names = [site.name for site in sites]
    for name in config.spared or ():
        if name not in names:
            raise RequestError(f"spared must be sites of the model ({names[0]} to {names[-1]}), got {name!r}")


def check_units(model: nn.Module) -> None:
    """Refuse a model in which nothing is left that could be pruned, or adapted.

    Raises:
        RequestError: no layer has a head or a neuron.
    """
    if not any(site.units for site in sites_of(model)):
        raise RequestError("model must have heads or neurons left, got one whose layers have none")
