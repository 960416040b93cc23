"""What can be asked for: frozen dataclasses that check themselves. Flags, recipes and Python share their defaults."""

from niwaki.config.dynamic import DynamicSparsityConfig, DynamicSparsityTraining
from niwaki.config.filter import Filter
from niwaki.config.finetune import Finetune
from niwaki.config.layer_adaptive import LAYER_SCORES, SPARSITY_ALLOCATIONS, WEIGHT_SCORES, LayerAdaptive
from niwaki.config.recipe import (
    read_recipe,
    recipe_from_dict,
    recipe_to_dict,
    stage_from_dict,
    stage_to_dict,
    write_recipe,
)
from niwaki.config.requests import (
    DEFAULT_LENGTH,
    DTYPES,
    STAGES,
    Demo,
    Evaluation,
    Export,
    Measured,
    Planning,
    Recipe,
    Request,
    Scoring,
    Stage,
)
from niwaki.config.structured import HEAD_SCORES, NEURON_SCORES, Structured
from niwaki.config.training import Training
from niwaki.config.vocabulary import Vocabulary

__all__ = [
    "DEFAULT_LENGTH",
    "DTYPES",
    "HEAD_SCORES",
    "LAYER_SCORES",
    "NEURON_SCORES",
    "SPARSITY_ALLOCATIONS",
    "STAGES",
    "WEIGHT_SCORES",
    "Demo",
    "DynamicSparsityConfig",
    "DynamicSparsityTraining",
    "Evaluation",
    "Export",
    "Filter",
    "Finetune",
    "LayerAdaptive",
    "Measured",
    "Planning",
    "Recipe",
    "Request",
    "Scoring",
    "Stage",
    "Structured",
    "Training",
    "Vocabulary",
    "read_recipe",
    "recipe_from_dict",
    "recipe_to_dict",
    "stage_from_dict",
    "stage_to_dict",
    "write_recipe",
]
