"""Load a model without an adapter: as what its task says, with all of its weights, or with a new head where asked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from niwaki.anatomy import ANSWERER, BODY, CLASSIFIER, Task, family_of, unwrap
from niwaki.anatomy.modeling_mobilellm import MobileLLMConfig
from niwaki.checkpoint.files import tensor_shapes
from niwaki.checkpoint.hub import local_folder
from niwaki.checkpoint.library import UNREADABLE, quiet, unreadable
from niwaki.checkpoint.masks import apply_saved_masks_
from niwaki.checkpoint.sentence import is_sentence_encoder
from niwaki.checkpoint.task import check_class, empty_model, output_layer, read_config, refused, task_of_config
from niwaki.errors import RequestError
from niwaki.surgery.narrow import apply_shapes_
from niwaki.surgery.shapes import METHOD, forget_

_UNUSED = re.compile(r"\.pooler\.|^cls\.seq_relationship\.|(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias)$")
"""Tensors that no head of another task is made of: a pooler and what it is for in pretraining (BERT's own files, which
say that they are of masked words, hold both), and buffers that older versions of Transformers wrote."""


_POOLER = re.compile(r"(^|\.)pooler\.")


@dataclass(frozen=True)
class Head:
    """What a checkpoint is loaded as: the task, options of its config.

    `replaces` says that its own head may be left behind; `draw` that the layer that gives the logits is drawn anew.
    """

    task: Task
    options: dict[str, Any] = field(default_factory=dict)
    replaces: bool = False
    draw: bool = False


@dataclass(frozen=True)
class NewLabels:
    """What a new head is to give: names of its outputs, for which task; none where the task says how many there are.

    A number to predict has one output, of any name. `problem` is the `problem_type` of a config, where it matters.
    """

    names: tuple[str, ...]
    task: Task = CLASSIFIER
    problem: str | None = None


def own_head(name: str, source: str | None = None) -> Head:
    """The head that a checkpoint has, which may be none; that of pretraining is left behind in a sentence encoder.

    `source` is the folder or Hub id of all modules, where `name` is the place of the first.

    Raises:
        RequestError: a checkpoint of a task that is not supported.
    """
    config = read_config(name)
    task = task_of_config(name, config)
    if task.pretraining and is_sentence_encoder(source or name):
        return Head(BODY, replaces=True)
    if not task.supported:
        raise refused(name, config, task)
    return Head(task)


def head_for(name: str, labels: NewLabels) -> Head:
    """The head for `labels`: a new one, but for a checkpoint whose own is of that task and knows them.

    A head of pretraining (masked words, the next token) is replaced.

    Raises:
        RequestError: a checkpoint with a head of another task that was trained for itself.
    """
    config, wanted = read_config(name), labels.task
    own = task_of_config(name, config)
    if own is wanted:
        names = cast("dict[int, str]", config.id2label)
        known = {label.lower() for label in names.values()} | {str(index) for index in names}
        fits = labels.problem in (None, config.problem_type)
        if fits and (len(labels.names) == config.num_labels == 1 or known.issuperset(x.lower() for x in labels.names)):
            return Head(own)
    elif not own.pretraining:
        rule = f"model must be {wanted.what} or have no head of its own to be trained as one"
        raise RequestError(f"{rule}, got {name!r}, {own.what} ({', '.join(config.architectures or ())})")
    # A number to predict has no name worth keeping.
    names = list(labels.names) if len(labels.names) > 1 or labels.problem else ["LABEL_0"] * len(labels.names)
    options: dict[str, Any] = label_options(names) if names else {"num_labels": 2} if wanted is ANSWERER else {}
    if labels.problem is not None:
        options["problem_type"] = labels.problem
    return Head(wanted, options, replaces=True, draw=bool(names))


def label_options(names: list[str]) -> dict[str, Any]:
    """Options of a config whose model gives these labels."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {label: index for index, label in enumerate(names)},
    }


def load_plain(name: str, head: Head, dtype: str) -> PreTrainedModel:
    """The model of a folder or Hub id, masks held, with `head`.

    Raises:
        RequestError: weights that are missing in its layers, or that the model would not use; a quantised model.
    """
    try:
        config = _config(name, head)
        if Path(name).is_dir():
            _check_sizes(name, config, head)
        with quiet(progress=not Path(name).is_dir()):
            model, report = head.task.auto.from_pretrained(  # type: ignore[attr-defined]
                name,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=head.replaces,
                output_loading_info=True,
            )
            if dtype == "auto" and model.dtype != torch.bfloat16:
                model = model.float()  # float16 is for GPUs: its range is too small for sums
            apply_saved_masks_(model, local_folder(name))
    except UNREADABLE as error:
        raise unreadable(name, error) from error
    key = family_of(model).heads_key
    if getattr(config, key) < 1:
        raise RequestError(
            f"{key} in {str(Path(name) / 'config.json')!r} must be at least 1, got {getattr(config, key)}"
        )
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    _check_used(name, model, report["unexpected_keys"], head)
    _check_whole(name, model, missing, head)
    model._niwaki_new_parameters = tuple(missing) if head.task is not BODY else ()
    if head.draw:
        _draw_output_(model)
    return model


def new_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a loaded model that its checkpoint did not hold: a task head, fresh and random."""
    return getattr(unwrap(model), "_niwaki_new_parameters", ())


def _config(name: str, head: Head) -> Any:
    config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **head.options)
    if isinstance(config, MobileLLMConfig) and config.repeats == 1:
        config = config.to_llama()
    check_class(config, head.task)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None and dict(quantised).get("quant_method") != METHOD:
        raise RequestError(f"model must hold float weights, got {name!r} quantised; prune first, quantise afterwards")
    table = getattr(config, METHOD, None)
    if table is not None:
        forget_(config)
        layers = table.get("layers") if isinstance(table, dict) else None
        config.quantization_config = {"quant_method": METHOD, "layers": layers}
    return config


def _check_sizes(name: str, config: Any, head: Head) -> None:
    """Refuse a config of other sizes than the tensors', before such a model is made: it may be of any size.

    An empty model is made, to compare, only where a number of the config is far above all sizes of tensors.
    """
    shapes = tensor_shapes(name)
    rule = f"config.json of {name!r} must have the sizes of its tensors"
    if config.num_hidden_layers > len(shapes):
        raise RequestError(f"{rule}, got {config.num_hidden_layers} layers and {len(shapes)} tensors")
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    if all(value <= 4 * widest for value in vars(config).values() if type(value) is int):
        return
    empty = empty_model(config, head.task)
    table = getattr(config, "quantization_config", None)
    if table is not None and (layers := dict(table).get("layers")) is not None:
        apply_shapes_(empty, layers)
    prefix = f"{empty.base_model_prefix}."
    for key, parameter in empty.named_parameters():
        found = shapes.get(key, shapes.get(key.removeprefix(prefix)))
        if key.startswith(prefix) and found not in (None, tuple(parameter.shape)):
            raise RequestError(f"{rule}, got {key} of {list(parameter.shape)} and {list(found or ())}")


def _check_used(name: str, model: PreTrainedModel, unexpected: Any, head: Head) -> None:
    """Refuse tensors that the model has no place for, but for those of a head that is replaced."""
    prefix = f"{model.base_model_prefix}."
    unused = sorted(
        key for key in unexpected if not _UNUSED.search(key) and (key.startswith(prefix) or not head.replaces)
    )
    if unused:
        rule = f"model must hold no tensors that a {type(model).__name__} does not use"
        raise RequestError(f"{rule}, got {name!r} with {', '.join(unused[:3])} ({len(unused)} unused)")


def _check_whole(name: str, model: PreTrainedModel, missing: list[str], head: Head) -> None:
    """Refuse layers without their weights. A language model needs its head too."""
    # Many checkpoints of encoders come without a pooler, which belongs to the task head in all but name.
    prefix = "" if model.can_generate() or head.task is BODY else f"{model.base_model_prefix}."
    body = [key for key in missing if key.startswith(prefix) and not _POOLER.search(key)]
    if body:
        rule = f"model must hold all weights of its {model.config.model_type} layers"
        raise RequestError(f"{rule}, got {name!r} without {body[0]} ({len(body)} missing)")


def _draw_output_(model: PreTrainedModel) -> None:
    """Draw the layer that gives the logits anew where the checkpoint's has the right size, but is of other labels."""
    name, last = output_layer(model)
    if f"{name}.weight" in new_parameters(model):
        return
    with torch.no_grad():
        last.weight.normal_(0.0, getattr(model.config, "initializer_range", 0.02))
        if last.bias is not None:
            last.bias.zero_()
    drawn = tuple(f"{name}.{key}" for key, _ in last.named_parameters())
    model._niwaki_new_parameters = (*new_parameters(model), *drawn)  # type: ignore[assignment]
