"""What the work needs of a model beside its layers: whole rows that are classified, or given one number."""

from __future__ import annotations

from torch import nn

from niwaki.anatomy.sites import sites_of, unwrap
from niwaki.errors import RequestError


def check_task(model: nn.Module) -> None:
    """Refuse a model whose outputs, or whose passes, are not those that everything here is made for.

    Raises:
        RequestError: no family row, no sequence classifier, several labels a row, tuples put out, FFNs run in chunks.
    """
    sites_of(model)
    inner = unwrap(model)
    kind = type(inner).__name__
    if not any("ForSequenceClassification" in base.__name__ for base in type(inner).__mro__):
        raise RequestError(f"model must be a sequence classifier (...ForSequenceClassification), got {kind}")
    config = inner.config
    wanted = "regression" if config.num_labels == 1 else "single_label_classification"
    if config.problem_type not in (None, wanted):
        rule = f"problem_type must be {wanted} for a model with num_labels {config.num_labels}"
        raise RequestError(f"{rule}, got {config.problem_type!r}")
    if not config.return_dict:
        raise RequestError(f"return_dict of the model's config must be True, got {config.return_dict!r}")
    if config.chunk_size_feed_forward > 0:
        rule = "chunk_size_feed_forward of the model's config must be 0 (the outputs are the same)"
        raise RequestError(f"{rule}, got {config.chunk_size_feed_forward}")


def check_units(model: nn.Module) -> None:
    """Refuse a model in which nothing is left that could be pruned, or adapted.

    Raises:
        RequestError: no layer has a head or a neuron.
    """
    if not any(site.units for site in sites_of(model)):
        raise RequestError("model must have heads or neurons left, got one whose layers have none")
