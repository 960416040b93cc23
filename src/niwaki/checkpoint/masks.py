"""The masks that a model holds, in a file of their own beside its weights, or its adapter's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from niwaki.anatomy import unwrap, weight_of
from niwaki.checkpoint.hub import beside
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, mask_linear_, unpack_bits

MASKS = "masks.safetensors"
"""Beside a model's (or an adapter's) weights: the masks that it holds, a bit a weight, by the linear's name."""


def write_masks(model: nn.Module, folder: Path) -> None:
    """Write the masks that a model holds beside its (or its adapter's) weights, for `load`; no file if it has none."""
    modules = unwrap(model).named_modules()
    held = {name.removesuffix(".base_layer"): m for name, m in modules if isinstance(m, MaskedLinear)}
    if held:
        write_held(folder, held)


def write_held(folder: Path, held: dict[str, MaskedLinear]) -> None:
    save_file({name: linear.bits for name, linear in held.items()}, folder / MASKS)


def apply_saved_masks_(model: PreTrainedModel, folder: Path | None, *, needed: bool = False) -> None:
    """Hold the masks that were written beside a model, in a folder of this machine or of the Hub's cache.

    Raises:
        RequestError: masks of something else; none, where they are `needed`.
    """
    file = beside(folder, MASKS) if folder is not None else None
    if file is None:
        if needed:
            rule = f"model must lie beside its {MASKS}, as its config says (else take quantization_config out of it)"
            raise RequestError(f"{rule}, got {str(folder)!r} without")
        return
    masks = load_file(file)
    places = names_in(model, masks)
    for name, bits in masks.items():
        try:
            linear = model.get_submodule(places[name])
        except AttributeError as error:
            raise RequestError(f"masks in {str(file)!r} must be of the model's linears: {name}") from error
        mask_linear_(linear, unpack_bits(bits, tuple(weight_of(linear).shape)))


def names_in(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """By name in a folder, which may be written from the body alone, or from one inside, the name in `model`.

    Transformers loads the tensors of either into both. A name that is nowhere stays as it is.
    """
    prefix = f"{model.base_model_prefix}."
    found = {name for name, _ in model.named_modules()}
    return {
        name: next((each for each in (name, prefix + name, name.removeprefix(prefix)) if each in found), name)
        for name in names
    }
