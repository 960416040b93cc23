"""Load a PEFT adapter with its base: the adapter says for which task, and every tensor that it brings is used."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import check_adapter, mask_adapters_
from niwaki.anatomy import BODY, CLASSIFIER, TASKS, Task, task_named
from niwaki.checkpoint.files import tensor_shapes_in
from niwaki.checkpoint.library import UNREADABLE, line
from niwaki.checkpoint.masks import MASKS, apply_saved_masks_
from niwaki.checkpoint.plain import Head, label_options, load_plain, new_parameters, own_head
from niwaki.checkpoint.task import empty_model, output_layer, read_config, task_of_config
from niwaki.config.text import place_named
from niwaki.errors import RequestError

Shapes = dict[str, tuple[int, ...]]

_WEIGHTS = "adapter_model.safetensors"
_LONGEST = 1000
"""Characters that the name of a base can have."""
_INSIDE = "base_model.model."
"""What PEFT writes before the name that a tensor has inside the base."""


def adapter_in(folder: Path) -> Path | None:
    """The folder of the adapter that `folder` holds or is; of several, the first by name. PEFT nests named ones."""
    inner = folder / "adapter"
    places = [inner, *sorted(place for place in inner.glob("*") if place.is_dir()), folder]
    return next((place for place in places if (place / "adapter_config.json").is_file()), None)


def adapter_config(folder: Path) -> PeftConfig:
    """The config of an adapter.

    Raises:
        RequestError: a damaged one, one without its tensors, an adapter that is not LoRA.
    """
    name = str(folder)
    try:
        config = PeftConfig.from_pretrained(name)
    except UNREADABLE as error:
        raise RequestError(f"adapter_config.json must be as PEFT writes it, got {name!r}: {line(error)}") from error
    check_adapter(name, config)
    if not (folder / _WEIGHTS).is_file():
        raise RequestError(f"model must hold {_WEIGHTS}, got {name!r} without it")
    return config


def adapter_head(folder: Path, base: str) -> Head:
    """What the base of an adapter is to be loaded as.

    The adapter's `task_type` decides, or the class that it was made for; without, the head of the base, or whether it
    brings a classifier's. The number of labels is that of the rows of the layer that gives the logits.

    Raises:
        RequestError: see `adapter_config`; an adapter for another task, or that does not fit the head of its base.
    """
    name, config = str(folder), adapter_config(folder)
    task = _task_of_adapter(name, config)
    of_base = task_of_config(base, read_config(base))
    if task is None or not task.pretraining:
        # Of no known task, a head is that of the base where it has one; else of a classifier, as most are.
        brought = task or (CLASSIFIER if of_base.pretraining else of_base)
        labels = _labels(base, tensor_shapes_in(folder / _WEIGHTS), brought)
        if labels is not None:
            same = brought.labels == "choice" or read_config(base).num_labels == labels
            options = {} if same else label_options([f"LABEL_{index}" for index in range(labels)])
            return Head(brought, options, replaces=True)
    if task is BODY:
        return Head(BODY, replaces=True)
    head = own_head(base)
    if task is not None and head.task is not task:
        asked = f"task_type {task.peft}" if config.task_type else f"class, {task.what}"
        rule = f"base_model must have a head of the adapter's {asked}, which {name!r} does not bring"
        raise RequestError(f"{rule}, got {base!r}, {of_base.what}")
    return head


def load_adapter(folder: Path, base: str, dtype: str) -> PeftModel:
    """The adapter in `folder` around the base that lies at `base`, masks held.

    Raises:
        RequestError: see `adapter_head`; tensors of the adapter that have no place in the model, or that it lacks.
    """
    shapes = tensor_shapes_in(folder / _WEIGHTS)
    _check_rank(folder, shapes)
    model = load_plain(base, adapter_head(folder, base), dtype)
    _resize_(model, shapes)
    brought = {key.removeprefix(_INSIDE) for key in shapes}
    model._niwaki_new_parameters = tuple(  # type: ignore[assignment]
        name for name in new_parameters(model) if name not in brought
    )
    try:
        with warnings.catch_warnings():
            # LoRA on a site without units: its factors have no elements.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
            warnings.filterwarnings("ignore", r".*LoRA tensor\(s\) have invalid shape")
            # PEFT asks Transformers by the old name.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
            apply_saved_masks_(model, folder)
            tuned = _around(model, folder)
            _check_all_used(folder, tuned, shapes)
        if (folder / MASKS).is_file():
            mask_adapters_(tuned)
        return tuned
    except UNREADABLE as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"base_model must fit the adapter {str(folder)!r}: {line(error)}") from error


def _resize_(model: PreTrainedModel, shapes: Shapes) -> None:
    """Give the embeddings as many rows as those in the adapter have: tokens were added before it was trained."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    name = next(name for name, module in model.named_modules() if module is embeddings)
    rows = shapes.get(f"{_INSIDE}{name}.weight", embeddings.weight.shape)[0]
    if rows != embeddings.num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _check_rank(folder: Path, shapes: Shapes) -> None:
    """Refuse a config of larger factors than those of any use, before PEFT makes them.

    A pattern may be of linears that the file has no factors of: they are gone, or another pattern goes before it.
    """
    sizes = [size for name, shape in shapes.items() if ".lora_" in name for size in shape]
    config = cast(LoraConfig, adapter_config(folder))
    pattern = config.rank_pattern or {}
    asked = [config.r, *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    if sizes and not all(isinstance(rank, int) and rank <= max(sizes) for rank in asked):
        rule = f"r and rank_pattern in adapter_config.json must be at most the {max(sizes)} of its tensors"
        raise RequestError(f"{rule}, got {str(folder)!r} with {max(asked, key=str)!r}")


def base_of(folder: Path, base_model: str | None) -> str:
    """Where the base of an adapter is: as asked; else as its config names it, on this machine or on the Hub.

    A folder is looked for as named from the working directory, then from the adapter's folder, then by its last name
    beside the adapter's folder (both were moved). The last places are the folders around it, where Niwaki writes the
    base.
    """
    if base_model is not None:
        return place_named("base_model", base_model)
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except UNREADABLE as error:
        raise RequestError(f"base_model must be given: {str(folder)!r} names none: {line(error)}") from error
    if not named or not isinstance(named, str) or len(named) > _LONGEST:
        told = "names none; where its base was pruned, save it with niwaki.save, which writes what is left of that"
        raise RequestError(f"base_model must be given: the adapter {str(folder)!r} {told}")
    around = folder.resolve().parent
    places = [Path(named), folder / named, around / Path(named).name, around, around.parent]
    with suppress(OSError, ValueError):  # a name that no file can have
        for place in places:
            if (place / "config.json").is_file():
                return str(place)
    tried = ", ".join(repr(str(place)) for place in places)
    try:
        read_config(named)
    except RequestError as error:
        if isinstance(error.__cause__, (OSError, ValueError)) and "code of its own" not in str(error):
            rule = f"base_model must be given: the base {named!r} that the adapter {str(folder)!r} names was not found"
            raise RequestError(f"{rule}; tried {tried} and the Hub") from error
        raise
    return str(named)


def _task_of_adapter(name: str, config: PeftConfig) -> Task | None:
    """The task that the adapter's config names, or of the class it names; None where it names none."""
    if config.task_type is None:  # PEFT notes the class then
        noted = getattr(config, "auto_mapping", None)
        named = noted.get("base_model_class") if isinstance(noted, dict) else None
        task = task_named([named]) if isinstance(named, str) else None
        return task if task and task.supported and not task.pretraining else None
    kind = str(config.task_type).rpartition(".")[2]
    task = next((task for task in TASKS if task.peft == kind), None)
    if task is None or not task.supported:
        known = " or ".join(task.peft for task in TASKS if task.supported and task.peft)
        what = f", {task.what}" if task else ""
        raise RequestError(f"task_type of the adapter must be {known}, got {name!r} with {kind}{what}")
    return task


def _labels(base: str, shapes: Shapes, task: Task) -> int | None:
    """Outputs of the head of `task` that an adapter brings, whatever its name is; None where it brings none."""
    config = read_config(base)
    config.num_labels = 1 if task.labels == "choice" else 2  # whatever the labels, a text to choose has one output
    try:
        name, _ = output_layer(empty_model(config, task))
    except RequestError:  # no model of the task of this type: the adapter can bring no head of one
        return None
    for key in ("weight", "lora_B.weight"):
        if f"{_INSIDE}{name}.{key}" in shapes:
            return shapes[f"{_INSIDE}{name}.{key}"][0]
    return None


def _around(model: PreTrainedModel, folder: Path) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except KeyError as error:  # a part that is saved whole is not in the file
        raise _lacking(model, folder, [str(error.args[0])]) from error


def _check_all_used(folder: Path, model: PeftModel, shapes: Shapes) -> None:
    """Refuse an adapter that holds more than the model has places for, or less."""
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    unused = sorted(set(shapes) - wanted - set(model.state_dict()))
    lacking = sorted(wanted - set(shapes))
    if unused:
        rule = f"adapter must hold no tensors that a {type(model.get_base_model()).__name__} does not use"
        raise RequestError(f"{rule}, got {str(folder)!r} with {', '.join(unused[:3])} ({len(unused)} unused)")
    if lacking:
        raise _lacking(model.get_base_model(), folder, lacking)


def _lacking(model: object, folder: Path, names: list[str]) -> RequestError:
    rule = f"adapter must hold every tensor that its config asks for in a {type(model).__name__}"
    return RequestError(f"{rule}, got {str(folder)!r} without {', '.join(names[:3])} ({len(names)} missing)")
