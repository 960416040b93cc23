"""The table of shapes given to a freshly built model, before its weights are loaded."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.anatomy import Site, sites_of
from niwaki.errors import RequestError
from niwaki.surgery.cut import Kept, remove_units_


def apply_shapes_(model: nn.Module, shapes: list[dict[str, int]]) -> None:
    """Narrow a freshly built model (on any device, the meta device too) to these shapes.

    Raises:
        RequestError: the table does not fit the model.
    """
    sites = sites_of(model)
    if not isinstance(shapes, list) or len(shapes) * 2 != len(sites):
        found = len(shapes) if isinstance(shapes, list) else repr(shapes)
        raise RequestError(f"shapes must have one entry for each of {len(sites) // 2} layers, got {found}")
    with torch.device("cpu"):  # what stays is known by its numbers, which the meta device does not hold
        kept = _kept(sites, shapes)
        _thin_groups_(model, shapes)
        remove_units_(model, kept)


def _kept(sites: list[Site], shapes: list[dict[str, int]]) -> Kept:
    """The first units of every site, as many as the table says."""
    kept = {}
    for site in sites:
        key = "heads" if site.kind == "attention" else "neurons"
        units = shapes[site.layer].get(key) if isinstance(shapes[site.layer], dict) else None
        if not isinstance(units, int) or not 0 <= units <= site.units:
            raise RequestError(f"shapes: {site.name} must have 0 to {site.units} {key}, got {units!r}")
        kept[site.name] = torch.arange(units)
    return kept


def _thin_groups_(model: nn.Module, shapes: list[dict[str, int]]) -> None:
    """Leave each group of query heads as many as a table says, where it does."""
    if not any("query_heads" in shape for shape in shapes):
        return
    kept = {}
    for site in sites_of(model, query_heads=True):
        kept[site.name] = torch.arange(site.units)
        if site.kind == "attention" and "query_heads" in shapes[site.layer]:
            heads, most = shapes[site.layer]["query_heads"], site.units // site.groups
            if type(heads) is not int or not 1 <= heads <= most:
                raise RequestError(f"shapes: {site.name} must have 1 to {most} query_heads, got {heads!r}")
            kept[site.name] = kept[site.name].reshape(site.groups, most)[:, :heads].flatten()
    remove_units_(model, kept, query_heads=True)
