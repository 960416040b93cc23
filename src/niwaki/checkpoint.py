"""Save and load, atomically, with uneven layers.

A pruned model is an ordinary Transformers folder. Where its layers are no longer what the plain config says,
`config.json` also holds a table of shapes under `quantization_config` with the method name `niwaki`: the quantizer
hook of Transformers is the one place where a model can be changed on the meta device before its weights arrive, so
`from_pretrained` works as soon as `niwaki` is imported. After loading, nothing marks the model as quantised but that
table, so it trains and is saved again like any other. A cut that leaves all layers alike is written as a plain config,
unless heads are gone and the config takes their width from their number. A remote-code export (see `niwaki.export`)
keeps its table under the key `niwaki`; `load` reads that too, and never runs the code.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from niwaki.anatomy import FAMILIES, family_of, head_width, heads_of_unit, sites_of, unwrap, weight_of
from niwaki.config import DTYPES
from niwaki.errors import RequestError, check_choice
from niwaki.folder import atomic_folder
from niwaki.layout import turned
from niwaki.lora import check_adapter, mask_adapters_, merge_
from niwaki.masks import MaskedLinear, mask_linear_, pack, pack_bits, unpack, unpack_bits
from niwaki.modeling_mobilellm import MODEL_TYPE, MobileLLMConfig, MobileLLMForCausalLM
from niwaki.modeling_niwaki import EmptyAttention
from niwaki.surgery import cut_

METHOD = "niwaki"
"""Name of the quantizer hook, and key of the table in the config of a remote-code export."""
INDEX = "model.safetensors.index.json"
"""Beside a model's weights where they lie in several files: which holds what."""
SHARD = "5GB"
"""Size of a file of weights at most."""
MASKS = "masks.safetensors"
"""Beside a model's (or an adapter's) weights: the masks that it holds, a bit a weight, by the linear's name."""

_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    *(SafetensorError, StrictDataclassError),
)
"""What Transformers and PEFT raise, in one place or another, over files that are damaged or of something else."""


def shapes_of(model: nn.Module) -> list[dict[str, int]]:
    """Heads (under grouped queries: groups of them) and neurons of every layer, as the model stands.

    Where a group has fewer query heads than the config says, also `query_heads`, those of a group.
    """
    layers: dict[int, dict[str, int]] = {}
    of_group = heads_of_unit(unwrap(model))
    for site in sites_of(model):
        layer = layers.setdefault(site.layer, {})
        layer["heads" if site.kind == "attention" else "neurons"] = site.units
        if site.kind == "attention" and site.heads != of_group:
            layer["query_heads"] = site.heads
    return [layers[index] for index in sorted(layers)]


def apply_shapes_(model: nn.Module, shapes: list[dict[str, int]]) -> None:
    """Narrow a freshly built model (on any device, the meta device too) to these shapes.

    Raises:
        RequestError: the table does not fit the model.
    """
    sites = sites_of(model)
    if not isinstance(shapes, list) or len(shapes) * 2 != len(sites):
        found = len(shapes) if isinstance(shapes, list) else repr(shapes)
        raise RequestError(f"shapes must have one entry for each of {len(sites) // 2} layers, got {found}")
    plan = {}
    for site in sites:
        key = "heads" if site.kind == "attention" else "neurons"
        units = shapes[site.layer].get(key) if isinstance(shapes[site.layer], dict) else None
        if not isinstance(units, int) or not 0 <= units <= site.units:
            raise RequestError(f"shapes: {site.name} must have 0 to {site.units} {key}, got {units!r}")
        plan[site.name] = torch.arange(units)
    _thin_groups_(model, shapes)
    cut_(model, plan)


def _thin_groups_(model: nn.Module, shapes: list[dict[str, int]]) -> None:
    """Leave each group of query heads as many as a table says, where it does."""
    plan = {}
    for site in sites_of(model, query_heads=True):
        plan[site.name] = torch.arange(site.units)
        if site.kind == "attention" and "query_heads" in shapes[site.layer]:
            heads, most = shapes[site.layer]["query_heads"], site.units // site.groups
            if type(heads) is not int or not 1 <= heads <= most:
                raise RequestError(f"shapes: {site.name} must have 1 to {most} query_heads, got {heads!r}")
            plan[site.name] = plan[site.name].reshape(site.groups, most)[:, :heads].flatten()
    cut_(model, plan, query_heads=True)


@register_quantization_config(METHOD)
class ShapesConfig(QuantizationConfigMixin):
    """The table of shapes in `config.json`, where the quantizer hook of Transformers finds it.

    `packed` has the number of kept weights of every linear that is stored as bits and values.
    """

    def __init__(
        self, layers: list[dict[str, int]] | None = None, packed: dict[str, int] | None = None, **_: Any
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layers = layers
        self.packed = packed or {}


class PackedLinear(nn.Module):
    """Stands where a linear was while its bits and values are loaded; see `niwaki.masks.pack`."""

    bitmask: Tensor

    def __init__(self, linear: nn.Linear | Conv1D, kept: int) -> None:
        super().__init__()
        weight = weight_of(linear)
        self.shape = (int(weight.shape[0]), int(weight.shape[1]))
        self.kind = Conv1D if isinstance(linear, Conv1D) else nn.Linear
        self.bias = linear.bias
        self.values = nn.Parameter(weight.new_empty(kept), requires_grad=False)
        self.register_buffer("bitmask", torch.empty(-(-weight.numel() // 8), dtype=torch.uint8, device=weight.device))

    def to_linear(self) -> MaskedLinear:
        """The linear, holding its mask."""
        weight, mask = unpack(self.bitmask, self.values.detach(), self.shape)
        if self.kind is Conv1D:
            conv = Conv1D(*self.shape)
            conv.weight, conv.bias = nn.Parameter(weight.T.contiguous()), cast(nn.Parameter, self.bias)
            return mask_linear_(conv, mask)
        linear = nn.Linear(self.shape[1], self.shape[0], bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(weight), self.bias
        return mask_linear_(linear, mask)


@register_quantizer(METHOD)
class ShapesLoader(HfQuantizer):
    """Narrows the model on the meta device before its weights are loaded."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = cast(Any, self.quantization_config)
        if config.layers is not None or not config.packed:
            apply_shapes_(model, cast(Any, config.layers))
        for name, kept in config.packed.items():
            model.set_submodule(name, PackedLinear(model.get_submodule(name), kept))
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name in cast(Any, self.quantization_config).packed:
            model.set_submodule(name, model.get_submodule(name).to_linear())
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config._is_quantized = False
            if isinstance(module, EmptyAttention):
                module.freeze_()
        model.is_quantized = False
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        return True

    @property
    def is_trainable(self) -> bool:  # type: ignore[override]
        return True


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """No reports and (unless `progress`) no progress bars of Transformers while open; its errors still raise."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars and not progress:
            transformers_logging.enable_progress_bar()


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
    kept = {key: getattr(config, key) for key in _OWN_KEYS if getattr(config, key, None) is not None}
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
            _write_masks(folder, held)
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
    except _UNREADABLE:
        return None
    return values


_OWN_KEYS = ("quantization_config", METHOD, "auto_map")


def forget_(config: Any) -> None:
    """Take all that Niwaki writes out of a config."""
    for key in _OWN_KEYS:
        if hasattr(config, key):
            delattr(config, key)


def weight_files(folder: Path) -> list[Path]:
    """The files in which the weights of a model folder lie: one, or its shards."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / "model.safetensors"]
    return sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})


def _pack_files(folder: Path, held: dict[str, MaskedLinear]) -> None:
    """Store masked weights as bits and kept values, one file after the other."""
    places: dict[str, str] = {}
    for path in weight_files(folder):
        tensors = load_file(path)
        for name, linear in held.items():
            if f"{name}.weight" in tensors:
                bits, values = pack(turned(linear, tensors.pop(f"{name}.weight")), linear.mask.cpu())
                tensors |= {f"{name}.bitmask": bits, f"{name}.values": values}
        save_file(tensors, path, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
    index = folder / INDEX
    if index.is_file():
        found = json.loads(index.read_text("utf-8"))
        found["metadata"]["total_size"] = sum(path.stat().st_size for path in weight_files(folder))
        found["weight_map"] = places
        index.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_masks(model: nn.Module, folder: Path) -> None:
    """Write the masks that a model holds beside its (or its adapter's) weights, for `load`; no file if it has none."""
    modules = unwrap(model).named_modules()
    held = {name.removesuffix(".base_layer"): m for name, m in modules if isinstance(m, MaskedLinear)}
    if held:
        _write_masks(folder, held)


def _write_masks(folder: Path, held: dict[str, MaskedLinear]) -> None:
    save_file({name: pack_bits(linear.mask) for name, linear in held.items()}, folder / MASKS)


def _hold_masks_(model: PreTrainedModel, folder: Path) -> None:
    """Hold the masks that were written beside a model."""
    if not (folder / MASKS).is_file():
        return
    for name, bits in load_file(folder / MASKS).items():
        try:
            linear = model.get_submodule(name)
        except AttributeError as error:
            raise RequestError(f"masks in {str(folder / MASKS)!r} must be of the model's linears: {name}") from error
        mask_linear_(linear, unpack_bits(bits, tuple(weight_of(linear).shape)))


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
        RequestError: `folder` exists and is not empty.
    """
    plain = merged(model)
    with atomic_folder(folder, overwrite) as temporary:
        write_model(plain, temporary, tokenizer, compact, max_shard_size)


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
                _write_masks(place.parent, held)
    finally:
        for name, config in model.peft_config.items():
            config.base_model_name_or_path = named[name]


def load(
    source: str | Path,
    base_model: str | None = None,
    device: str = "cpu",
    labels: list[str] | None = None,
    dtype: str = "float32",
) -> PreTrainedModel | PeftModel:
    """Load a language model or a sequence classifier; `dtype` is float32, bfloat16, or auto: as its files hold it.

    `source` is a Hub id, a Transformers or Niwaki folder, or a PEFT adapter folder.

    A folder that holds an adapter beside its base (`keep_adapter`) is loaded with the adapter.

    With `labels` (names of classes, one name for a number to predict), a model without a task head that knows them gets
    a new one, to be trained.

    Raises:
        RequestError: nothing there, a damaged or non-safetensors file, a quantised model, an adapter that does not fit.
    """
    check_choice("dtype", dtype, DTYPES)
    name = str(source)
    folder = Path(name)
    if folder.is_dir():
        _check_files(folder)
    elif folder.is_absolute() or name.startswith((".", "~")) or folder.is_file():
        raise RequestError(f"model must be a Hub id or a folder with a model, got {name!r}")
    adapter = _adapter_in(folder)
    if adapter is not None:
        model: PreTrainedModel | PeftModel = _load_adapter(adapter, base_model, dtype)
    else:
        new = _new_head(name, labels) if labels else {}
        model = _load_plain(name, new, dtype)
        if new:
            _draw_last_layer_(model)
    model.eval()
    try:
        return cast("PreTrainedModel | PeftModel", model.to(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        rule = "device must be one that this PyTorch can use, such as cpu"
        raise RequestError(f"{rule}, got {device!r}: {_line(error)}") from error


def load_tokenizer(source: str | Path, base_model: str | None = None) -> Any:
    """The tokenizer of a model folder or Hub id; of an adapter without one, its base model's."""
    folder = Path(source)
    if (folder / "adapter_config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_of(folder, base_model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise RequestError(f"model must have tokenizer files, got {str(source)!r}: {_line(error)}") from error
    # Without files Transformers makes one that knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise RequestError(f"model must have tokenizer files, got {str(source)!r} without a vocabulary")
    return tokenizer


def new_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a loaded model that its checkpoint did not hold: a task head, fresh and random."""
    return getattr(unwrap(model), "_niwaki_new_parameters", ())


def _load_plain(name: str, options: dict[str, Any], dtype: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        if isinstance(config, MobileLLMConfig) and config.repeats == 1:
            config = config.to_llama()
        quantised = getattr(config, "quantization_config", None)
        if quantised is not None and dict(quantised).get("quant_method") != METHOD:
            raise RequestError(
                f"model must hold float weights, got {name!r} quantised; prune first, quantise afterwards"
            )
        table = getattr(config, METHOD, None)
        if table is not None:
            forget_(config)
            layers = table.get("layers") if isinstance(table, dict) else None
            config.quantization_config = {"quant_method": METHOD, "layers": layers}
        with quiet(progress=not Path(name).is_dir()):
            model, report = _auto_class(config).from_pretrained(
                name,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=bool(options),
                output_loading_info=True,
            )
            _hold_masks_(model, Path(name))
    except RequestError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    key = family_of(model).heads_key
    if getattr(config, key) < 1:
        raise RequestError(
            f"{key} in {str(Path(name) / 'config.json')!r} must be at least 1, got {getattr(config, key)}"
        )
    # Many checkpoints of encoders come without a pooler, which belongs to the task head in all but name.
    prefix = "" if model.can_generate() else f"{model.base_model_prefix}."
    body = [key for key in missing if key.startswith(prefix) and ".pooler." not in key]
    if body:
        rule = f"model must hold all weights of its {config.model_type} layers"
        raise RequestError(f"{rule}, got {name!r} without {body[0]} ({len(body)} missing)")
    model._niwaki_new_parameters = tuple(missing)
    return model


def loads_language_model(source: str, base_model: str | None = None) -> bool:
    """Whether `load` would give a language model; False also for what it would refuse. Only configs are read."""
    try:
        folder = _adapter_in(Path(source))
        place = source if folder is None else _base_of(folder, base_model)
        return _auto_class(AutoConfig.from_pretrained(place, trust_remote_code=False)) is AutoModelForCausalLM
    except (RequestError, *_UNREADABLE):
        return False


def _auto_class(config: Any) -> Any:
    """The class that loads a checkpoint for what it was made for: the next token, or else classes."""
    causal = {name for family in FAMILIES if family.causal for name in family.model_types}
    names = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_TYPE: MobileLLMForCausalLM.__name__}
    named = names.get(config.model_type) in (config.architectures or ())
    return AutoModelForCausalLM if named and config.model_type in causal else AutoModelForSequenceClassification


def _draw_last_layer_(model: PreTrainedModel) -> None:
    """Draw the layer that gives the logits anew where the checkpoint's has the right size, but is of other labels."""
    name, last = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    if f"{name}.weight" in new_parameters(model):
        return
    with torch.no_grad():
        last.weight.normal_(0.0, cast(Any, model.config).initializer_range)
        last.bias.zero_()
    model._niwaki_new_parameters = (*new_parameters(model), f"{name}.weight", f"{name}.bias")  # type: ignore[assignment]


def _new_head(name: str, labels: list[str]) -> dict[str, Any]:
    """Config options of a new task head for `labels`; none where the checkpoint has a head that knows them."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    if _auto_class(config) is AutoModelForCausalLM:
        return {}
    has_head = any("ForSequenceClassification" in architecture for architecture in config.architectures or [])
    names = cast("dict[int, str]", config.id2label)
    known = {label.lower() for label in names.values()} | {str(index) for index in names}
    if has_head and (len(labels) == config.num_labels == 1 or known.issuperset(label.lower() for label in labels)):
        return {}
    new = labels if len(labels) > 1 else ["LABEL_0"]
    return {
        "num_labels": len(new),
        "id2label": dict(enumerate(new)),
        "label2id": {label: index for index, label in enumerate(new)},
    }


def _adapter_in(folder: Path) -> Path | None:
    """The folder of the adapter that `folder` holds or is; of several, the first by name. PEFT nests named ones."""
    inner = folder / "adapter"
    places = [inner, *sorted(place for place in inner.glob("*") if place.is_dir()), folder]
    return next((place for place in places if (place / "adapter_config.json").is_file()), None)


def _load_adapter(folder: Path, base_model: str | None, dtype: str) -> PeftModel:
    name = str(folder)
    try:
        config = PeftConfig.from_pretrained(name)
    except _UNREADABLE as error:
        raise RequestError(f"adapter_config.json must be as PEFT writes it, got {name!r}: {_line(error)}") from error
    check_adapter(name, config)
    if not (folder / "adapter_model.safetensors").is_file():
        raise RequestError(f"model must hold adapter_model.safetensors, got {name!r} without it")
    options: dict[str, Any] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        keys = set(tensors.keys())
        for key in keys:
            if key.endswith((".classifier.weight", ".classifier.out_proj.weight")):
                options["num_labels"] = tensors.get_slice(key).get_shape()[0]
    place = _base_of(folder, base_model)
    if Path(place).is_dir():
        _check_files(Path(place))
    base = _load_plain(place, options, dtype)
    brought = {key.removeprefix("base_model.model.") for key in keys}
    base._niwaki_new_parameters = tuple(  # type: ignore[assignment]
        name for name in new_parameters(base) if name not in brought
    )
    try:
        with warnings.catch_warnings():
            # LoRA on a site without units: its factors have no elements.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
            # PEFT asks Transformers by the old name.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            _hold_masks_(base, folder)
            model = PeftModel.from_pretrained(base, str(folder))
        if (folder / MASKS).is_file():
            mask_adapters_(model)
        return model
    except _UNREADABLE as error:
        raise RequestError(f"base_model must fit the adapter {str(folder)!r}: {_line(error)}") from error


def _base_of(folder: Path, base_model: str | None) -> str:
    """Where the base of an adapter is: as asked; else as its config names it, on this machine or on the Hub.

    A folder is looked for as named from the working directory, then from the adapter's folder, then by its last name
    beside the adapter's folder (both were moved). The last places are the folders around it, where Niwaki writes the
    base.
    """
    if base_model is not None:
        return base_model
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except _UNREADABLE as error:
        raise RequestError(f"base_model must be given: {str(folder)!r} names none: {_line(error)}") from error
    if not named:
        raise RequestError(f"base_model must be given: the adapter {str(folder)!r} names none")
    around = folder.resolve().parent
    places = [Path(named), folder / named, around / Path(named).name, around, around.parent]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    tried = ", ".join(repr(str(place)) for place in places)
    try:
        AutoConfig.from_pretrained(named, trust_remote_code=False)
    except (OSError, ValueError) as error:
        rule = f"base_model must be given: the base {named!r} that the adapter {str(folder)!r} names was not found"
        raise RequestError(f"{rule}; tried {tried} and the Hub") from error
    return str(named)


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise RequestError(f"model must hold config.json or adapter_config.json, got {str(folder)!r}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RequestError(f"model must hold safetensors weights, got {str(folder)!r} without any")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise RequestError(f"model file {str(path)!r} must be whole, got a damaged one: {_line(error)}") from error


def _unreadable(name: str, error: BaseException) -> RequestError:
    if isinstance(error, OSError) and not Path(name).is_dir():
        rule = "model must be a folder, or a Hub model that can be reached or is in the cache"
    else:
        rule = "model must be a language model or a sequence classifier that loads"
    return RequestError(f"{rule}, got {name!r}: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
