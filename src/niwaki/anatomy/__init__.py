"""What a model is made of."""

from niwaki.anatomy.calls import Call, first_layer_call
from niwaki.anatomy.counts import Counts, count, unit_flops, unit_params
from niwaki.anatomy.families import FAMILIES, Family, family_of, supported_model_types
from niwaki.anatomy.linears import BlockLinear, linears_of
from niwaki.anatomy.mode import evaluation_mode
from niwaki.anatomy.positions import longest_input
from niwaki.anatomy.sites import (
    Kind,
    Site,
    body_of,
    columns_of,
    empty_linears,
    layers_of,
    linear_paths,
    sites_of,
    unwrap,
    weight_of,
)
from niwaki.anatomy.task import check_task, check_units

__all__ = [
    "FAMILIES",
    "BlockLinear",
    "Call",
    "Counts",
    "Family",
    "Kind",
    "Site",
    "body_of",
    "check_task",
    "check_units",
    "columns_of",
    "count",
    "empty_linears",
    "evaluation_mode",
    "family_of",
    "first_layer_call",
    "layers_of",
    "linear_paths",
    "linears_of",
    "longest_input",
    "sites_of",
    "supported_model_types",
    "unit_flops",
    "unit_params",
    "unwrap",
    "weight_of",
]
