"""What a model is made of."""

from niwaki.anatomy.accepts import accepts_of
from niwaki.anatomy.calls import Call, first_layer_call, layer_calls
from niwaki.anatomy.check import check_filter, check_task, check_units
from niwaki.anatomy.counts import Counts, common_flops, common_params, count, unit_flops, unit_params
from niwaki.anatomy.families import FAMILIES, Family, family_of, supported_model_types
from niwaki.anatomy.forward import become_, running
from niwaki.anatomy.linears import BlockLinear, linears_of
from niwaki.anatomy.mode import evaluation_mode, without_caches
from niwaki.anatomy.own_config import own_config_
from niwaki.anatomy.pooling import Pooling, pool_by_, pooling_of
from niwaki.anatomy.positions import longest_input
from niwaki.anatomy.predictions import Predictions, joined
from niwaki.anatomy.projections import Projection, columns_of, set_features_, weight_of
from niwaki.anatomy.recompute import layers_run_again, left_by_layers
from niwaki.anatomy.said import Part, Said
from niwaki.anatomy.sites import (
    Kind,
    Site,
    Units,
    body_of,
    empty_linears,
    head_width,
    heads_of_unit,
    layers_of,
    linear_paths,
    runs_of,
    sites_of,
    unwrap,
)
from niwaki.anatomy.task import (
    ANSWERER,
    BODY,
    CHOOSER,
    CLASSIFIER,
    LANGUAGE_MODEL,
    TAGGER,
    TASKS,
    Task,
    is_language_model,
    is_regression,
    labels_of,
    note_problem_,
    one_a_row,
    predicted_tokens,
    predictions_of,
    supported_task,
    task_named,
    task_of,
    with_labels,
)

__all__ = [
    "ANSWERER",
    "BODY",
    "CHOOSER",
    "CLASSIFIER",
    "FAMILIES",
    "LANGUAGE_MODEL",
    "TAGGER",
    "TASKS",
    "BlockLinear",
    "Call",
    "Counts",
    "Family",
    "Kind",
    "Part",
    "Pooling",
    "Predictions",
    "Projection",
    "Said",
    "Site",
    "Task",
    "Units",
    "accepts_of",
    "become_",
    "body_of",
    "check_filter",
    "check_task",
    "check_units",
    "columns_of",
    "common_flops",
    "common_params",
    "count",
    "empty_linears",
    "evaluation_mode",
    "family_of",
    "first_layer_call",
    "head_width",
    "heads_of_unit",
    "is_language_model",
    "is_regression",
    "joined",
    "labels_of",
    "layer_calls",
    "layers_of",
    "layers_run_again",
    "left_by_layers",
    "linear_paths",
    "linears_of",
    "longest_input",
    "note_problem_",
    "one_a_row",
    "own_config_",
    "pool_by_",
    "pooling_of",
    "predicted_tokens",
    "predictions_of",
    "running",
    "runs_of",
    "set_features_",
    "sites_of",
    "supported_model_types",
    "supported_task",
    "task_named",
    "task_of",
    "unit_flops",
    "unit_params",
    "unwrap",
    "weight_of",
    "with_labels",
    "without_caches",
]
