"""What task a checkpoint is for: the class that its config names says so, where it names none the tensors in the file.

Nothing but the config and the names of tensors is read, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from niwaki.anatomy import BODY, FAMILIES, LANGUAGE_MODEL, TASKS, Task, body_of, supported_model_types, task_named
from niwaki.checkpoint.files import tensor_shapes
from niwaki.checkpoint.library import UNREADABLE, unreadable
from niwaki.config.text import check_utf8
from niwaki.errors import RequestError

_MOST_LAYERS = 1000
_CAUSAL = {name for family in FAMILIES if family.causal for name in family.model_types}


def read_config(name: str) -> Any:
    """The config of a model folder or Hub id.

    Raises:
        RequestError: none there, a damaged one, one that needs code of its own, labels that are no UTF-8.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as error:
        raise unreadable(name, error) from error
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_LAYERS:  # even an empty model of these would take hours
        rule = f"num_hidden_layers in config.json must be at most {_MOST_LAYERS} to have the sizes of its tensors"
        raise RequestError(f"{rule}, got {layers} in {name!r}")
    for label in (getattr(config, "id2label", None) or {}).values():
        check_utf8(f"id2label in config.json of {name!r}", str(label))
    return config


def task_of_config(name: str, config: Any) -> Task:
    """The task of the checkpoint `name`, supported or not.

    Raises:
        RequestError: a class that no task is known for; tensors that do not say what the model is.
    """
    classes = config.architectures or []
    if not isinstance(classes, list) or not all(isinstance(kind, str) for kind in classes):
        raise RequestError(f"architectures in config.json of {name!r} must be names of classes, got {classes!r}")
    check_own_code(name, config)
    if not classes:
        return _task_of_tensors(name, config)
    task = task_named(classes)
    if task is None:
        raise RequestError(f"{_RULE}, got {name!r}, a {classes[0]}")
    if task is LANGUAGE_MODEL and config.model_type in set(supported_model_types()) - _CAUSAL:
        raise RequestError(f"{_RULE}, got {name!r}, a language model of an encoder's family ({classes[0]})")
    return task


def refused(name: str, config: Any, task: Task) -> RequestError:
    """The error for a checkpoint of a task that Niwaki does not take."""
    classes = ", ".join(config.architectures or ()) or "by its tensors"
    return RequestError(f"{_RULE}, got {name!r}, {task.what} ({classes})")


_RULE = f"model must be one of these: {', '.join(task.what for task in TASKS if task.supported)}"


def empty_model(config: Any, task: Task) -> Any:
    """The model of a config and a task without values: its parameters have names and shapes alone.

    Raises:
        RequestError: Transformers has no such class for this type of model.
    """
    check_class(config, task)
    with torch.device("meta"):
        return task.auto.from_config(copy.deepcopy(config), trust_remote_code=False)  # type: ignore[attr-defined]


def check_class(config: Any, task: Task) -> None:
    """Refuse a type of model for which Transformers has no class of this task.

    Raises:
        RequestError: naming the type.
    """
    if not _has_class(config, task):
        rule = f"model type must be one that Transformers has {task.what} for"
        raise RequestError(f"{rule}, got {config.model_type!r}")


def check_own_code(name: str, config: Any) -> None:
    """Refuse a class that comes as code with its checkpoint, though its type is one that Transformers knows.

    Raises:
        RequestError: naming the class.
    """
    for named in config.architectures or () if getattr(config, "auto_map", None) else ():
        known = {task.auto._model_mapping[type(config)] for task in TASKS if _has_class(config, task)}  # type: ignore[attr-defined]
        if named not in {kind.__name__ for kind in known}:
            rule = "model must load without code of its own, which is never run"
            raise RequestError(f"{rule}, got {name!r} whose {named} needs it")


def output_layer(model: Any) -> tuple[str, nn.Linear]:
    """Name and linear of a classifier that give its logits: the last one beside the body with a row for each label.

    Raises:
        RequestError: there is none.
    """
    body = set(body_of(model).modules())
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in body and module.out_features == model.config.num_labels
    ]
    if not found:
        raise RequestError(f"model must have a linear that gives its logits, got {type(model).__name__} without")
    return found[-1]


def _has_class(config: Any, task: Task) -> bool:
    return type(config) in task.auto._model_mapping  # type: ignore[attr-defined]


def _task_of_tensors(name: str, config: Any) -> Task:
    """The first task whose class has the very head that lies in the files."""
    found = None
    for task in TASKS:
        if not _has_class(config, task) or (task is LANGUAGE_MODEL and config.model_type not in _CAUSAL):
            continue
        model = empty_model(config, task)
        if found is None:
            found = _beside_body(tensor_shapes(name), model.base_model_prefix)
            if found is None:
                return BODY
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
        if found - tied == (_beside_body(model.state_dict(), model.base_model_prefix) or set()) - tied:
            return task
    if found is None:
        raise RequestError(f"{_RULE}, got {name!r}, of type {config.model_type!r}")
    names = ", ".join(sorted(found)[:6]) or "none"
    raise RequestError(f"architectures in config.json of {name!r} must say what the model is, got none; head: {names}")


def _beside_body(names: Iterable[str], prefix: str) -> set[str] | None:
    """The tensors of the head, the pooler among them; None where no name starts as those of a body in a model do."""
    names = list(names)
    if not any(name.startswith(f"{prefix}.") for name in names):
        return None
    return {name for name in names if not name.startswith(f"{prefix}.") or ".pooler." in name}
