"""Niwaki: fine-tuned transformers made smaller and faster, each part pruned as much as it can bear."""

from importlib.metadata import version

import niwaki.interrupt
import niwaki.waiting  # noqa: F401 - before PyTorch
from niwaki.adapters import merge_, remove_masks_
from niwaki.checkpoint import load, save
from niwaki.config import (
    DynamicSparsityConfig,
    DynamicSparsityTraining,
    Finetune,
    LayerAdaptive,
    Structured,
    Vocabulary,
)
from niwaki.errors import NiwakiError, RequestError, WorkError
from niwaki.methods.dynamic import DynamicSparsity
from niwaki.methods.finetune import finetune
from niwaki.methods.plan import Plan
from niwaki.methods.prune import apply_, plan, prune_, score
from niwaki.methods.vocabulary import trim_vocabulary_

__version__ = version("niwaki")

__all__ = [
    "DynamicSparsity",
    "DynamicSparsityConfig",
    "DynamicSparsityTraining",
    "Finetune",
    "LayerAdaptive",
    "NiwakiError",
    "Plan",
    "RequestError",
    "Structured",
    "Vocabulary",
    "WorkError",
    "__version__",
    "apply_",
    "finetune",
    "load",
    "merge_",
    "plan",
    "prune_",
    "remove_masks_",
    "save",
    "score",
    "trim_vocabulary_",
]
