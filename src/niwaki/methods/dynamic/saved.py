"""A controller on file, so that an interrupted training goes on bit for bit: safetensors, masks as bits.

The file holds, by the name of the linear: the mask, the first mask, which weights were ever active and which the last
update grew; the smoothed scores; of trained weights their ages and the values at rest; what the allocation knows of it,
which was found before the weights were trained. Then the steps that were made, where the schedule started, and the
state of the random generator. The history lies beside it as JSON lines.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from niwaki.allocation.sparsity import LinearProfile
from niwaki.checkpoint import write_masks
from niwaki.errors import RequestError
from niwaki.masks import pack_bits, unpack_bits
from niwaki.methods.dynamic.controller import Controller
from niwaki.methods.dynamic.history import HISTORY, read_history, write_history
from niwaki.methods.dynamic.scores import Seen

STATE = "dynamic.safetensors"
_SEEN = tuple(field.name for field in dataclasses.fields(Seen))
_TOLD = ("low", "high", "importance", "curve")
_RANKED = ("scores", "weights")
"""What a profile says in numbers, and in tensors as large as the weight."""


def save_controller(controller: Controller, folder: str | Path) -> None:
    """Write the state of a controller into an existing folder, to be called between two steps.

    The masks lie there once more, as `niwaki.load` reads them beside a model or an adapter. Under LoRA, go on from the
    pretrained base and the saved adapter: the state dict of a masked model has zeros where a weight could return.
    """
    tensors: dict[str, Tensor] = {"generator": controller.generator.get_state()}
    for name, mask in controller.masks.items():
        bits = {"mask": mask, "first": controller.first[name]}
        bits |= {"ever": controller.ever[name], "newest": controller.newest[name]}
        tensors |= {f"{name}/{key}": pack_bits(value) for key, value in bits.items()}
        seen = {key: getattr(controller.seen[name], key) for key in _SEEN}
        tensors |= {f"{name}/{key}": value for key, value in seen.items() if value is not None}
        if name in controller.ages:
            tensors |= {f"{name}/ages": controller.ages[name].ages, f"{name}/resting": controller.resting[name]}
        if controller.config.reallocation == "within":  # the others are looked at before the first step only
            ranked = {key: getattr(controller.profiles[name], key) for key in _RANKED}
            tensors |= {f"{name}/{key}": value for key, value in ranked.items() if value is not None}
    profiles = controller.profiles.items()
    made = {
        "done": controller.done,
        "start": controller.schedule.start,
        "config": dataclasses.asdict(controller.config),
        "steps": controller.schedule.steps,
        "profiles": {name: {key: getattr(profile, key) for key in _TOLD} for name, profile in profiles},
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(tensors, Path(folder) / STATE, metadata={"niwaki": json.dumps(made)})
    write_history(controller.history, Path(folder) / HISTORY)
    write_masks(controller.model, Path(folder))


def restore_controller_(controller: Controller, folder: str | Path) -> None:
    """Give a controller that was just made the state that `save_controller` wrote.

    The model and the optimizer are restored by whoever saved them, before or after.

    Raises:
        RequestError: no such file, a damaged one, or one of another configuration, length or model.
    """
    path = Path(folder) / STATE
    try:
        with safe_open(path, framework="pt") as file:
            made = json.loads((file.metadata() or {})["niwaki"])
        tensors = load_file(path)
        history = read_history(Path(folder) / HISTORY)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RequestError(f"checkpoint must hold {STATE} and {HISTORY} as written, got {folder!s}: {error}") from error
    # As JSON has it, which knows no tuples.
    config, steps = json.loads(json.dumps(dataclasses.asdict(controller.config))), controller.schedule.steps
    changed = [key for key, value in config.items() if made["config"].get(key) != value]
    for key in changed[:1]:
        raise RequestError(f"{key} must be {made['config'].get(key)!r} as in the checkpoint, got {config[key]!r}")
    if made["steps"] != steps:
        raise RequestError(f"the training must have {made['steps']} steps as in the checkpoint, got {steps}")
    if {key.rpartition("/")[0] for key in tensors} - {""} != set(controller.bases):
        raise RequestError(f"checkpoint must be of a model with the same linears, got {folder!s}")
    controller.schedule = dataclasses.replace(controller.schedule, start=made["start"])
    controller.done, controller.history = made["done"], history
    told = made.get("profiles", {})  # older files have none
    controller.profiles |= {
        name: _restored(profile, told[name], {key: tensors.get(f"{name}/{key}") for key in _RANKED})
        for name, profile in controller.profiles.items()
        if name in told
    }
    controller.generator.set_state(tensors["generator"])
    for name, base in controller.bases.items():
        shape, device = tuple(base.weight.shape), base.weight.device
        mask, first, ever, newest = (
            unpack_bits(tensors[f"{name}/{key}"], shape).to(device) for key in ("mask", "first", "ever", "newest")
        )
        controller.give_back_(name)  # what starting anew laid aside may be active in the checkpoint
        base.mask = mask
        controller.first[name], controller.ever[name], controller.newest[name] = first, ever, newest
        found = {key: tensors.get(f"{name}/{key}") for key in _SEEN}
        controller.seen[name] = Seen(**{k: v if v is None else v.to(device) for k, v in found.items()})
        if name in controller.ages:
            controller.ages[name].restore(tensors[f"{name}/ages"])
            controller.resting[name].copy_(tensors[f"{name}/resting"])
            base.weight.data[~mask] = 0
    controller.arm()


def _restored(profile: LinearProfile, told: dict[str, Any], ranked: dict[str, Tensor | None]) -> LinearProfile:
    """The profile of a linear as it was before it was trained, in place of one that was made of trained weights."""
    found = {key: value.to(getattr(profile, key).device) for key, value in ranked.items() if value is not None}
    return dataclasses.replace(profile, **{**told, "curve": tuple(map(tuple, told["curve"]))}, **found)
