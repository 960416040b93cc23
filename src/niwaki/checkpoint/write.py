"""Write a model as an ordinary Transformers folder, its adapter beside it where that is kept."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from niwaki.adapters import check_adapters, forget_initialisation_, merge_
from niwaki.anatomy import pooling_of
from niwaki.checkpoint.files import INDEX, weight_files
from niwaki.checkpoint.folder import atomic_folder
from niwaki.checkpoint.library import quiet
from niwaki.checkpoint.masks import write_held
from niwaki.checkpoint.sentence import SentenceHead
from niwaki.checkpoint.tokenizer import write_tokenizer
from niwaki.errors import RequestError
from niwaki.masks import MaskedLinear, pack
from niwaki.numerics.layout import to_out_in
from niwaki.surgery.shapes import ShapesConfig, write_shapes_

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
    with _config_of_files(model, packed, masks=bool(held) and not packed):
        with quiet():
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        if packed:
            _pack_files(folder, held)
        elif held:
            write_held(folder, held)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)
    if isinstance(beside := pooling_of(model), SentenceHead):
        beside.write(folder)


@contextmanager
def _config_of_files(model: PreTrainedModel, packed: dict[str, int], masks: bool) -> Iterator[None]:
    """While open, the config says what the files will hold, and no class that came as remote code saves itself."""
    config, kind = cast(Any, model.config), cast(Any, type(model))
    before, auto_class = dict(vars(config)), kind._auto_class
    try:
        write_shapes_(config, model)
        if packed or masks:
            table = getattr(config, "quantization_config", None)
            config.quantization_config = ShapesConfig(table and table.layers, packed, masks)
        kind._auto_class = None
        yield
    finally:
        kind._auto_class = auto_class
        vars(config).clear()
        vars(config).update(before)


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
    """The plain model itself, or a merged copy of a `PeftModel`.

    Raises:
        RequestError: adapters that cannot be merged, see `niwaki.merge_`.
    """
    check_adapters(model)  # some cannot even be copied
    return merge_(copy.deepcopy(model) if isinstance(model, PeftModel) else model)


def check_adapter_left(model: PeftModel) -> None:
    """Refuse to write an adapter for which PEFT would find no place any more.

    Raises:
        RequestError: all that it was put on is pruned away.
    """
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        rule = "keep_adapter must be asked where pruning leaves something that the adapter was put on"
        raise RequestError(f"{rule}, got {model.active_adapter!r} without any; leave keep_adapter out")


def write_adapter(model: PeftModel, folder: Path, final: Path, tokenizer: Any = None) -> None:
    """Write the unmerged pruned base into `folder` and its active adapter, based on `final`, into `folder/adapter`.

    Raises:
        RequestError: several adapters are active, of which only one would be loaded.
    """
    if len(model.active_adapters) != 1:
        raise RequestError(f"keep_adapter must be asked where one adapter is active, got {model.active_adapters}")
    if Path(model.active_adapters[0]).name != model.active_adapters[0]:
        raise RequestError(f"adapter must have a name that a folder can have, got {model.active_adapters[0]!r}")
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, LoraLayer) and module.merged:
            cast(LoraLinear, module).unmerge()
    # The base comes first: PEFT looks at it while it saves the adapter.
    base = copied.unload()  # type: ignore[operator]
    write_model(base, folder, tokenizer)
    before = {name: copy.copy(config) for name, config in model.peft_config.items()}
    try:
        forget_initialisation_(model)
        for config in model.peft_config.values():
            config.base_model_name_or_path = str(final.resolve())  # PEFT looks from wherever it is run
            for key, value in vars(config).items():
                if isinstance(value, set):  # PEFT writes sets as they come, another way in each process
                    setattr(config, key, sorted(value))
        with warnings.catch_warnings():
            # PEFT takes the one dimension of a `lora_bias` for a shard.
            warnings.filterwarnings("ignore", ".*LoRA tensor.s. have invalid shape")
            # The base beside it has the embeddings as they are, so PEFT need not look for what they were.
            place = str(folder / "adapter")
            model.save_pretrained(place, save_embedding_layers=False, selected_adapters=model.active_adapters)
        for form in (folder / "adapter").rglob("README.md"):  # PEFT's, not filled in: the card is that of the folder
            form.unlink()
        held = {name: module for name, module in base.named_modules() if isinstance(module, MaskedLinear)}
        if held:  # the adapters were trained under these
            for place in sorted((folder / "adapter").rglob("adapter_config.json")):
                write_held(place.parent, held)
    finally:
        for name, config in model.peft_config.items():
            vars(config).update(vars(before[name]))
