"""Write a model as an ordinary Transformers folder, its adapter beside it where that is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from niwaki.adapters import merge_
from niwaki.anatomy import family_of, head_width, heads_of_unit, unwrap
from niwaki.checkpoint.files import INDEX, weight_files
from niwaki.checkpoint.folder import atomic_folder
from niwaki.checkpoint.hook import OWN_KEYS, ShapesConfig, forget_
from niwaki.checkpoint.library import UNREADABLE, quiet
from niwaki.checkpoint.masks import write_held
from niwaki.masks import MaskedLinear, pack
from niwaki.numerics.layout import to_out_in
from niwaki.surgery.shapes import shapes_of

SHARD = "5GB"
"""Size of a file of weights at most."""


def save(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    overwrite: bool = False,
    compact: bool = False,
    max_shard_size: int | str = SHARD,
) -> None:
    """Write a model so that `load` and `from_pretrained` give it back bit for bit. An adapter is merged in a copy.

    `compact` stores masked weights as bits and kept values; `import niwaki` is needed to read them. Files hold at most
    `max_shard_size` bytes (a number, or as in "5GB") where no one tensor is larger.

    Raises:
        RequestError: `folder` is not empty, and with `overwrite` holds what Niwaki did not write.
    """
    plain = merged(model)
    with atomic_folder(folder, overwrite) as temporary:
        write_model(plain, temporary, tokenizer, compact, max_shard_size)


def write_model(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: Any = None,
    compact: bool = False,
    max_shard_size: int | str = SHARD,
) -> None:
    """Write a plain (merged) model into an existing folder; its config is left as it was.

    Masks that are held go into a file of their own beside dense tensors with the zeros in them, which load anywhere;
    `compact` stores masked weights as bits and kept values instead, which only Niwaki reads.
    """
    held = {name: module for name, module in model.named_modules() if isinstance(module, MaskedLinear)}
    packed = {name: int(linear.mask.sum()) for name, linear in held.items()} if compact else {}
    shapes, config = shapes_of(model), cast(Any, model.config)
    kept = {key: getattr(config, key) for key in OWN_KEYS if getattr(config, key, None) is not None}
    plain = _plain_values(model, shapes)
    before = {key: getattr(config, key) for key in plain or () if hasattr(config, key)}
    auto_class = type(model)._auto_class
    try:
        forget_(config)
        if plain is None:
            config.quantization_config = ShapesConfig(layers=shapes, packed=packed)  # type: ignore[call-arg]
        for key, value in (plain or {}).items():
            setattr(config, key, value)
        if plain is not None and packed:
            config.quantization_config = ShapesConfig(packed=packed)  # type: ignore[call-arg]
        cast(Any, type(model))._auto_class = None  # a class that came as remote code would write itself into the folder
        with quiet():
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        if packed:
            _pack_files(folder, held)
        elif held:
            write_held(folder, held)
    finally:
        cast(Any, type(model))._auto_class = auto_class
        for key in plain or ():
            delattr(config, key)
        for key, value in before.items():
            setattr(config, key, value)
        forget_(config)
        for key, value in kept.items():
            setattr(config, key, value)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _plain_values(model: PreTrainedModel, shapes: list[dict[str, int]]) -> dict[str, int] | None:
    """What a plain config has to say of layers that are all alike; None where that would not be enough."""
    family, config, first = family_of(model), cast(Any, model.config), shapes[0]
    if any(layer != first for layer in shapes) or not all(first.values()):
        return None
    values = {family.neurons_key: first["neurons"]}
    heads = first["heads"] * first.get("query_heads", heads_of_unit(model))
    if heads != getattr(config, family.heads_key):
        if family.width_key is None or family.groups_key is None:
            return None
        values |= {family.heads_key: heads, family.groups_key: first["heads"], family.width_key: head_width(model)}
    try:  # some want the model's width to be a multiple of the number of heads
        type(cast(PreTrainedConfig, config)).from_dict({**config.to_dict(), **values})
    except UNREADABLE:
        return None
    return values


def _pack_files(folder: Path, held: dict[str, MaskedLinear]) -> None:
    """Store masked weights as bits and kept values, one file after the other."""
    places: dict[str, str] = {}
    for path in weight_files(folder):
        tensors = load_file(path)
        for name, linear in held.items():
            if f"{name}.weight" in tensors:
                bits, values = pack(to_out_in(linear, tensors.pop(f"{name}.weight")), linear.mask.cpu())
                tensors |= {f"{name}.bitmask": bits, f"{name}.values": values}
        save_file(tensors, path, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
    index = folder / INDEX
    if index.is_file():
        found = json.loads(index.read_text("utf-8"))
        found["metadata"]["total_size"] = sum(path.stat().st_size for path in weight_files(folder))
        found["weight_map"] = places
        index.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merged(model: nn.Module) -> PreTrainedModel:
    """The plain model itself, or a merged copy of a `PeftModel`."""
    return merge_(copy.deepcopy(model)) if isinstance(model, PeftModel) else unwrap(model)


def write_adapter(model: PeftModel, folder: Path, final: Path, tokenizer: Any = None) -> None:
    """Write the unmerged pruned base into `folder` and its adapter, based on `final`, into `folder/adapter`."""
    # The base comes first: PEFT looks at it while it saves the adapter.
    base = copy.deepcopy(model).unload()  # type: ignore[operator]
    write_model(base, folder, tokenizer)
    named = {name: config.base_model_name_or_path for name, config in model.peft_config.items()}
    try:
        for config in model.peft_config.values():
            config.base_model_name_or_path = str(final)
        # The base beside it has the embeddings as they are, so PEFT need not look for what they were.
        model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        held = {name: module for name, module in base.named_modules() if isinstance(module, MaskedLinear)}
        if held:  # the adapters were trained under these
            for place in sorted((folder / "adapter").rglob("adapter_config.json")):
                write_held(place.parent, held)
    finally:
        for name, config in model.peft_config.items():
            config.base_model_name_or_path = named[name]
