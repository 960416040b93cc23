"""Niwaki: fine-tuned transformers made smaller and faster, each part pruned as much as it can bear."""

import niwaki.interrupt  # noqa: F401 - before all that takes seconds to import
from niwaki.checkpoint import load, save
from niwaki.config import Dynamic, DynamicTraining, Finetune, LayerAdaptive, Structured, Vocabulary
from niwaki.dynamic import DynamicSparsity
from niwaki.errors import NiwakiError, RequestError, WorkError
from niwaki.finetune import finetune
from niwaki.lora import merge_
from niwaki.prune import prune_, score
from niwaki.version import __version__
from niwaki.vocabulary import trim_vocabulary_

__all__ = [
    "Dynamic",
    "DynamicSparsity",
    "DynamicTraining",
    "Finetune",
    "LayerAdaptive",
    "NiwakiError",
    "RequestError",
    "Structured",
    "Vocabulary",
    "WorkError",
    "__version__",
    "finetune",
    "load",
    "merge_",
    "prune_",
    "save",
    "score",
    "trim_vocabulary_",
]
